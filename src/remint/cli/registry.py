"""Commands about what is registered: what there is, why, who decided it, and a person's own word."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from remint import screens, terminal
from remint.cli.app import AsJson, ModelRef, app, here, print_json

NEWEST = 50  # versions of a model that are listed


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="One model; all of them where left out.")] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every version, not only a model's newest 50 and those with an alias.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What is registered, and what is champion.

    Example: remint models digits-vae
    """
    home, _ = here()
    from remint import queries

    answer = queries.models(home, name, None if all_ else NEWEST)
    if as_json:
        print_json(answer)
    else:
        screens.models(answer, None if all_ else NEWEST)


@app.command()
def why(model: ModelRef, as_json: AsJson = False) -> None:
    """What a version was made from, how it compares with the champion before it, and why it was promoted or not.

    Example: remint why digits-vae@champion
    """
    home, _ = here()
    from remint import queries

    answer = queries.why(home, model)
    if as_json:
        print_json(answer)
    else:
        screens.why(answer)


@app.command()
def history(model: Annotated[str, typer.Argument(help="NAME of a model.")], as_json: AsJson = False) -> None:
    """The ledger of one model: every decision, who took it, when and why, and whether the chain verifies.

    Example: remint history digits-vae
    """
    home, _ = here()
    from remint import queries

    answer = queries.history(home, model)
    if as_json:
        print_json(answer)
    else:
        screens.history(model, answer)


@app.command()
def promote(
    model: ModelRef, reason: Annotated[str, typer.Option(help="Why; goes into the ledger.")], as_json: AsJson = False
) -> None:
    """Make a version the champion by a person's word: one that awaits approval, or one that the gate refused.

    Example: remint promote digits-vae/3 --reason "looked at the samples"
    """
    _decide(model, "promoted", reason, as_json)


@app.command()
def reject(
    model: ModelRef, reason: Annotated[str, typer.Option(help="Why; goes into the ledger.")], as_json: AsJson = False
) -> None:
    """Turn a version down by a person's word; the champion stays.

    Example: remint reject digits-vae/3 --reason "smears the sevens"
    """
    _decide(model, "rejected", reason, as_json)


def _decide(model: str, action: Literal["promoted", "rejected"], reason: str, as_json: bool) -> None:
    home, _ = here()
    from remint import queries

    row = queries.decide(home, model, action, reason)
    if as_json:
        print_json(row)
    else:
        name = row["model"]
        terminal.out.print(
            f"{name}/{row['version']} was {action} by {row['who']}; champion: {screens.standing(name, row['champion_after'])}"
        )
