"""`smolcls backends`: what can be used here."""

from __future__ import annotations

import click

from smolcls import registry
from smolcls.cli.output import printable
from smolcls.lines import json_line


@click.command("backends")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(as_json: bool) -> None:
    """Show which backends can be used and, where not, why and the command that mends it."""
    width = max(len(name) for name in registry.names())
    for name, reason in registry.availability():
        if as_json:
            click.echo(json_line({"backend": name, "available": reason is None, "reason": reason}))
        else:
            state = "ready" if reason is None else f"not ready: {printable(reason)}"
            click.echo(f"{name:<{width}}  {state}")
