"""`onnxcomp search`: the best settings under a budget, and the front of what was tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcomp.cli import options
from onnxcomp.job import Job
from onnxcomp.search.keys import SearchKeys


@options.command("search")
@click.argument("model", type=click.Path(path_type=Path))
@options.settings(Job, without=("model", "passes", "recipe", "html"))
@options.settings(SearchKeys)
@options.written("--json", "json_file", what="Write every trial and the front")
@options.written("--html", what="Write the front as a page")
@options.printing(
    "Print nothing but errors, and a line for a missed budget.", verbose="-v: every trial. -vv: a traceback."
)
def command(model: Path, json_file: Path | None, html: Path | None, quiet: bool, verbose: int, **given: Any) -> int:
    """Search what makes MODEL smallest or fastest within a budget, and write the best, its proof and its settings.

    Recipes come first, then what the sampler says. Trials are kept beside the output: the same command goes on where it
    stopped. The exit code is that of `optimize` for the model taken: 0, 10 to 15 for a missed budget, 13 for no gain.
    """
    from onnxcomp import places
    from onnxcomp.cli.finish import finish
    from onnxcomp.cli.progress import Bar
    from onnxcomp.cli.screen import echo
    from onnxcomp.files import STANDARD_OUTPUT
    from onnxcomp.report.record import write_data
    from onnxcomp.runtime.progress import SILENT
    from onnxcomp.search.page import write_page
    from onnxcomp.search.rows import to_json
    from onnxcomp.search.run import search, writes_of
    from onnxcomp.search.show import lines

    keys = SearchKeys(**{name: given.pop(name) for name in SearchKeys.__dataclass_fields__})
    job = Job(model=model, **given)
    places.check(places.only_read(job), writes_of(job, keys) | {"--json": json_file, "--html": html})

    def tell(text: str) -> None:
        if not quiet:
            echo(text, err=True)

    found = search(job, keys, tell=tell, progress=SILENT if quiet else Bar())
    if json_file is not None:
        write_data(to_json(found.rows, found.judge), json_file)
    if html is not None:
        write_page(found, html)
    aside = STANDARD_OUTPUT in (json_file, html)
    if not quiet:
        for line in lines(found):
            echo(line, err=aside)
        if found.config is not None:
            echo(f"makes it again: onnxcomp build {found.config}", err=aside)
        for path in (json_file, html):
            if path is not None and path != STANDARD_OUTPUT:
                echo(f"wrote  {path}", err=aside)
    if found.report is None:
        echo(f"{model}: nothing that was tried made the model better within the budget", err=True)
        return found.exit_code
    if aside and not quiet:
        return found.exit_code
    return finish(job, found.report, quiet=quiet, verbose=bool(verbose))
