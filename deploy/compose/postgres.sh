#!/bin/bash
# Roles and databases of the stack, made by the image of PostgreSQL at its first start.
set -euo pipefail

make() { # name of a role, its password, its databases
    local role=$1 password=$2
    shift 2
    psql --set=ON_ERROR_STOP=1 --username postgres --set=role="$role" --set=password="$password" <<<"CREATE ROLE :\"role\" LOGIN PASSWORD :'password';"
    for database in "$@"; do
        createdb --username postgres --owner "$role" "$database"
    done
}

make remint_ledger "$LEDGER_PASSWORD" remint_ledger
make mlflow "$MLFLOW_PASSWORD" mlflow
make mlflow_users "$MLFLOW_PASSWORD" mlflow_users
make prefect "$PREFECT_PASSWORD" prefect
make remint_s3 "$S3_PASSWORD" remint_s3
