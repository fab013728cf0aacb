"""The command that labels images in a browser: label."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.base import CACHE, announce, cli, say
from pipeline.core.callbacks import Callbacks
from pipeline.core.spec import PENULTIMATE
from pipeline.stages.options import TRUST_REMOTE_CODE

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.cache import Cache
    from pipeline.labelling.session import Session
    from pipeline.labelling.words import EmbedTexts, Words


@cli.command()
@click.argument("cache", type=CACHE)
@click.option(
    "-o",
    "--output",
    metavar="LABELS.csv",
    help="The table of labels to write. Its journal stands beside it; the same command goes on.  [default: "
    "CACHE.h5.labels.csv]",
)
@click.option(
    "--task",
    type=click.Choice(["classification", "multilabel", "regression"]),
    help="What an image gets: one class, a set of labels, or a number.  [default: that of the journal, or "
    "classification]",
)
@click.option("--layer", default=PENULTIMATE, show_default=True, help="The layer of the cache that the head sees.")
@click.option(
    "--merge",
    metavar="OTHER.csv",
    help="Add the labels of another table, report how far it agrees (Cohen's kappa), and end. Labels here stay.",
)
@click.option("--keep-labels", is_flag=True, help="Start from the labels that CACHE holds, to find the doubtful ones.")
@click.option(
    "--weights",
    metavar="FILE",
    help="The weights file or folder, to search by words in a cache of a dual encoder that was made with one.",
)
@click.option("--run", "run", metavar="RUN/", help="The run that the page's button makes.  [default: LABELS-head]")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="The port to listen at.  [default: a free one]")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen at. Another one lets other machines in, if they know the printed address; unencrypted.",
)
@TRUST_REMOTE_CODE
@click.option("--no-browser", is_flag=True, help="Do not open the page.")
def label(cache: str, output: str | None, **options: Any) -> None:
    """Label the images of CACHE in a browser: groups first, then what a head is unsure of; it is refitted as you go.

    The labels are an ordinary table, for fit-head --labels and extract --labels. Every action is on the disk before the
    page shows it. Ctrl-C ends the server.
    """
    from pipeline.cache import open_cache
    from pipeline.labelling.server import check_extra
    from pipeline.labelling.session import open_session

    if options["merge"] is None:
        check_extra()
    path = Path(f"{cache}.labels.csv") if output is None else Path(output)
    announce(f"label: reading {cache}")
    opened = open_cache(cache)
    with open_session(opened, path, options["task"], layer=options["layer"], say=say) as session:
        if options["keep_labels"]:
            _keep(session)
        if options["merge"] is not None:
            from pipeline.labelling.merge import merge_labels

            say("\n".join(merge_labels(session, options["merge"]).lines()))
            return
        run = options["run"] or f"{path.with_suffix('')}-head"
        make_run = _maker(cache, run, session, options["layer"])
        _serve(session, make_run, _words(opened, options), options)


def _keep(session: Session) -> None:
    from pipeline.labelling.merge import give, labels_of_cache

    labels = labels_of_cache(session)
    if labels:
        give(session, labels)
    say(f"{len(labels)} labels of the cache kept")


def _maker(cache: str, run: str, session: Session, layer: str) -> Callable[[Callable[[str], None]], Path]:
    """Return the function of the page's button: an ordinary fit on the table of labels."""

    def make(tell: Callable[[str], None]) -> Path:
        from pipeline.stages.calls import fit_head

        callbacks = Callbacks(say=tell)
        task, table = session.task, str(session.path)
        result = fit_head(cache, run, callbacks=callbacks, labels=table, task=task, layer=layer)
        tell("\n".join(result.headlines()))
        return Path(run)

    return make


def _words(cache: Cache, options: dict[str, Any]) -> Words | None:
    """Return what searches by words, where the network of the cache may read any."""
    from pipeline.embedding.text import may_read_texts_of, text_tower_of_spec
    from pipeline.labelling.words import Words

    layer, weights, trust = options["layer"], options["weights"], options["trust_remote_code"]

    def load() -> EmbedTexts:
        return text_tower_of_spec(cache.spec, layer, weights, trust_remote_code=trust).embed

    return Words(cache, layer, load) if may_read_texts_of(cache.spec, layer) else None


def _serve(
    session: Session,
    make_run: Callable[[Callable[[str], None]], Path],
    words: Words | None,
    options: dict[str, Any],
) -> None:
    from pipeline.labelling.app import make_app
    from pipeline.labelling.guard import new_token
    from pipeline.labelling.server import address_of, host_names, is_loopback, listen, serve
    from pipeline.labelling.thumbnails import SUFFIX, Thumbnails

    host = options["host"]
    sock = listen(host, options["port"])
    token = new_token()
    address = address_of(sock, host, token)
    thumbnails = Thumbnails(session.cache, Path(f"{session.cache.path}{SUFFIX}"))
    hosts = host_names(sock, host)
    app = make_app(session, thumbnails, token=token, hosts=hosts, make_run=make_run, words=words)

    def started() -> None:
        if not is_loopback(host):
            say(f"warning: whoever can read the traffic to {host} can read this address and change the labels")
        say(f"labelling {len(session)} images at {address} (Ctrl-C ends it); labels go to {session.path}")
        if session.outputs is None:  # the page begins with the groups: they are found while the browser starts
            threading.Thread(target=session.groups, daemon=True).start()
        if not options["no_browser"]:
            import webbrowser  # only where a page is opened

            with contextlib.suppress(webbrowser.Error):
                webbrowser.open(address)

    with contextlib.closing(sock):
        serve(app, sock, started)
