"""Other tools' post-training quantisers, given the same original and the same calibration images as ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from act.backends.base import Images
from act.bench.peers import modelopt, nncf, onnxruntime
from act.bench.peers.base import Peer
from act.bench.sources import BASELINE, PEER, Source
from act.errors import InputError

__all__ = ["PEERS", "Peer", "choose_peers", "make_peers", "peer_name"]

PEERS: dict[str, Peer] = {peer.name: peer for peer in (onnxruntime.PEER, nncf.PEER, modelopt.PEER)}


def choose_peers(words: str) -> list[str]:
    """The peers in a comma-separated list, `all` for every one; InputError for an unknown name."""
    names = list(PEERS) if words == "all" else [word for word in words.split(",") if word]
    unknown = [name for name in names if name not in PEERS]
    if unknown or not names:
        raise InputError(f"--peers: {', '.join(unknown) or 'empty'}; known: {', '.join(PEERS)}, or all")
    return list(dict.fromkeys(names))


def peer_name(name: str) -> str:
    """What tables call a peer's file."""
    return f"peer {name}"


def make_peers(
    names: Sequence[str],
    sources: Sequence[Source],
    images: Sequence[Images],
    folder: Path,
    skipped: list[tuple[str, str]],
    say: Callable[[str], None] = lambda text: None,
) -> list[Source]:
    """Quantise the original among `sources` with each peer; those that cannot are added to `skipped` with the reason.

    `say` is told of each before it begins.

    Raises:
        InputError: there is no original in ONNX.
    """
    originals = [source.path for source in sources if source.role == BASELINE and source.path.suffix == ".onnx"]
    if not originals:
        raise InputError("--peers: there is no FP32 ONNX file to quantise; give --baseline FILE.onnx")
    made = []
    for name in names:
        peer = PEERS[name]
        reason = peer.missing()
        if reason is None:
            say(f"{peer_name(name)}: {peer.settings}, {len(images)} images")
            try:
                made.append(Source(peer_name(name), peer.quantize(originals[0], images, folder), PEER))
            except Exception as error:  # another tool can fail in any way; the rest of the table is still worth having
                reason = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if reason is not None:
            skipped.append((peer_name(name), reason))
    return made
