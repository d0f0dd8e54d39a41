"""A line of text that tells one target from another, so that a saved fit or truth is only used with its own target."""

from __future__ import annotations

import hashlib

from ppl_vi.target.target import Target


def fingerprint(target: Target) -> str:
    """The target's name, its sites with their shapes, and a digest of its data and learned values with their dtype."""
    digest = hashlib.sha256()
    for arg in (*target.data, *(target.learned.values.values() if target.learned else ())):
        digest.update(str((tuple(arg.shape), str(arg.dtype))).encode())
        digest.update(arg.detach().cpu().contiguous().numpy().tobytes())
    sites = ", ".join(f"{site.name}{tuple(site.shape)}" for site in target.latents)
    return f"{target.name}: {sites}: {digest.hexdigest()[:16]}"
