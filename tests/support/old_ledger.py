"""Ledger tables as commit 1b187ec created them (schema version 1), with rows and hashes that it wrote."""

from __future__ import annotations

import sqlalchemy as sa

from remint.runtime.addresses import with_driver

INSERT = """INSERT INTO ledger (model, sequence, action, champion_before, champion_after, version, who, why, evidence, at, previous,
hash) VALUES"""

LEDGER = [
    "CREATE TABLE ledger_schema (version INTEGER NOT NULL, PRIMARY KEY (version))",
    "INSERT INTO ledger_schema VALUES (1)",
    """CREATE TABLE ledger (model VARCHAR(256) NOT NULL, sequence INTEGER NOT NULL, action VARCHAR(32) NOT NULL,
    champion_before INTEGER, champion_after INTEGER, version INTEGER NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL,
    evidence VARCHAR(64) NOT NULL, at VARCHAR(40) NOT NULL, previous VARCHAR(64) NOT NULL, hash VARCHAR(64) NOT NULL,
    PRIMARY KEY (model, sequence))""",
    f"""{INSERT} ('digits-vae', 1, 'promoted', NULL, 1, 1, 'gate', 'nothing was champion', '{"a" * 64}',
    '2026-05-01T03:00:00.000000+00:00', '', '3f6f33cfe5039c11451f23ae353aae0de89392c829c575848d49bdcce971acbb')""",
    f"""{INSERT} ('digits-vae', 2, 'kept', 1, 1, 2, 'gate',
    'nll 2.41 is not below 2.39\nreason given: größer', '{"b" * 64}', '2026-05-02T03:00:00.000000+00:00',
    '3f6f33cfe5039c11451f23ae353aae0de89392c829c575848d49bdcce971acbb',
    '0977381b9f9205220a7bedcbf14084419bdff7ae79d1ac8986e46063db1a0e3f')""",
    f"""{INSERT} ('digits-vae', 3, 'promoted', 1, 3, 3, 'gate', 'better', '{"c" * 64}',
    '2026-05-03T03:00:00.000000+00:00', '0977381b9f9205220a7bedcbf14084419bdff7ae79d1ac8986e46063db1a0e3f',
    '4a050441dee6752968ddee37ab2f34a2fed15fe890655d35dd6885fc99cd30df')""",
    f"""{INSERT} ('digits-vae', 4, 'rolled_back', 3, 1, 3, 'ada', 'it blurs', '',
    '2026-05-04T03:00:00.000000+00:00', '4a050441dee6752968ddee37ab2f34a2fed15fe890655d35dd6885fc99cd30df',
    '73ad613d8dbd75b071d579915e9fd850e63fb9a9ea298e0682941445621b6688')""",
]
COLLECTED = [
    "CREATE TABLE collected_schema (version INTEGER NOT NULL, PRIMARY KEY (version))",
    "INSERT INTO collected_schema VALUES (1)",
    """CREATE TABLE collected_versions (model VARCHAR(256) NOT NULL, number INTEGER NOT NULL, "key" VARCHAR(64) NOT NULL,
    at VARCHAR(40) NOT NULL, PRIMARY KEY (model, number))""",
    f"INSERT INTO collected_versions VALUES ('digits-vae', 2, '{'d' * 64}', '2026-05-05T03:42:57+00:00')",
]
SPREADS = [
    "CREATE TABLE spreads_schema (version INTEGER NOT NULL, PRIMARY KEY (version))",
    "INSERT INTO spreads_schema VALUES (1)",
    """CREATE TABLE seed_spreads (pipeline VARCHAR(256) NOT NULL, sequence INTEGER NOT NULL, who TEXT NOT NULL,
    at VARCHAR(40) NOT NULL, spread TEXT NOT NULL, PRIMARY KEY (pipeline, sequence))""",
    """INSERT INTO seed_spreads VALUES ('digits-vae', 1, 'ada', '2026-05-05T03:42:57+00:00',
    '{"pipeline":"digits-vae","recipe":"r","dataset":"d","seeds":[0,1],"values":{"nll":[1.5,1.25]}}')""",
]
LEASES = [
    "CREATE TABLE leases_schema (version INTEGER NOT NULL, PRIMARY KEY (version))",
    "INSERT INTO leases_schema VALUES (1)",
    """CREATE TABLE leases (name VARCHAR(256) NOT NULL, term BIGINT NOT NULL, beats BIGINT NOT NULL, holder TEXT NOT NULL,
    PRIMARY KEY (name))""",
    "INSERT INTO leases VALUES ('retrain digits-vae', 3, 9, '')",
]
PARTS = {"ledger": LEDGER, "collected": COLLECTED, "spreads": SPREADS, "leases": LEASES}
OLD_HASHES = [statement[-66:-2] for statement in LEDGER[3:]]


def execute(url: str, *statements: str) -> None:
    engine = sa.create_engine(with_driver(url), poolclass=sa.NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
