"""Commands for registered versions: list them, explain them, show decisions, and decide by hand."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from remint.cli import completion, screens, terminal
from remint.cli.app import AsJson, ModelRef, app, here, print_json
from remint.stores.ledger.row import LedgerRow

Reason = Annotated[str, typer.Option(help="Reason, recorded in the ledger.")]

Model = Annotated[str, typer.Argument(help="NAME of a model.", autocompletion=completion.models)]

NEWEST = 50  # listed versions per model


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(help="One model; all models if omitted.", autocompletion=completion.models)
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every version, not only a model's newest 50 and those with an alias.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the registered versions and the champions.

    Example: remint models digits-vae
    """
    home, _ = here()
    from remint.promotion import queries

    answer = queries.models(home, name, None if all_ else NEWEST)
    if as_json:
        print_json([version.to_json() for version in answer])
    else:
        screens.models(answer, None if all_ else NEWEST)


@app.command("why")
def _why(model: ModelRef, as_json: AsJson = False) -> None:
    """Explain a version: its data, settings and code, its comparison with the champion before it, and the decision.

    Example: remint why digits-vae@champion
    """
    home, _ = here()
    from remint.promotion.why import why

    answer = why(home, model)
    if as_json:
        print_json(answer.to_json())
    else:
        screens.why(answer)


@app.command()
def history(
    model: Model,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also compare with the hashes in MLflow; exit status 1 if it does not verify.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the ledger of one model: every decision with its author, time and reason, and whether the hash chain verifies.

    Example: remint history digits-vae --verify
    """
    home, _ = here()
    from remint.promotion import queries

    answer = queries.history(home, model, verify=verify)
    if as_json:
        print_json(answer.to_json())
    else:
        screens.history(answer)
    if verify and answer.findings:
        raise SystemExit(1)


@app.command()
def promote(
    model: ModelRef,
    reason: Reason,
    against: Annotated[
        str,
        typer.Option(help="Version that you expect to be champion, or none; if omitted, the one that MODEL was judged against."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Make a version the champion by hand: one that awaits approval or shadow, or one that the gate did not promote.

    Example: remint promote digits-vae/3 --reason "looked at the samples" --against 2
    """
    from remint.promotion import decide, publishing

    expected = decide.parse_against(against)
    home, _ = here()
    row = decide.promote(home, model, reason, expected)
    _say(row, as_json)
    publishing.publish_decided(home, row.model, terminal.say)


@app.command()
def reject(model: ModelRef, reason: Reason, as_json: AsJson = False) -> None:
    """Reject a version by hand. The champion stays, and the gate alone never promotes the version again.

    Example: remint reject digits-vae/3 --reason "smears the sevens"
    """
    home, _ = here()
    from remint.promotion import decide

    _say(decide.reject(home, model, reason), as_json)


@app.command()
def rollback(model: Model, reason: Reason, as_json: AsJson = False) -> None:
    """Make the last champion before the present one the champion again. Versions that do not load are skipped.

    Example: remint rollback digits-vae --reason "the sevens blur"
    """
    home, _ = here()
    from remint.promotion import decide, publishing

    row = decide.rollback(home, model, reason)
    _say(row, as_json)
    publishing.publish_decided(home, row.model, terminal.say)


@app.command()
def publish(
    pipelines: Annotated[
        list[str] | None,
        typer.Argument(help="Pipelines with publish:; all of them if omitted.", autocompletion=completion.models),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write champions to the place of the setting publish:, for services without MLflow, and check the files there.

    Every promotion and rollback does this; the command is for a new setting, and after a failure.

    Example: remint publish digits-vae
    """
    home, params = here()
    from remint.promotion import publishing

    done = publishing.publish_pipelines(home, params, pipelines or [])
    if as_json:
        print_json([each.to_json() for each in done])
        return
    for each in done:
        now = "is published now" if each.written else "was published already, and its files verify"
        terminal.out.print(f"{each.model} {now}: {each.address}", soft_wrap=True, markup=False)
    if not done:
        terminal.out.print("no pipeline in params.yaml has publish:", markup=False)


def _say(row: LedgerRow, as_json: bool) -> None:
    if as_json:
        print_json(row.to_json())
        return
    now = screens.version_ref(row.model, row.champion_after)
    said = f"{row.model}/{row.version} was {row.action.replace('_', ' ')} by {row.who}; champion: {now}"
    passed_over = row.why.splitlines()[1:] if row.action == "rolled_back" else []
    terminal.out.print("\n".join(map(escape, [said, *passed_over])), soft_wrap=True)
