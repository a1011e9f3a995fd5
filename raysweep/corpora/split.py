"""Which part of a corpus a document belongs to, by the hash of its text: the same wherever and whenever it is asked."""

from __future__ import annotations

import re

# Of a role's documents; pretraining has many, a fine-tuning subject few.
VALIDATION_SHARE = {"pretraining": 0.02}
TEST_SHARE = {"pretraining": 0.02, "finetune_python": 0.1, "finetune_math": 0.1, "finetune": 0.1}

# Roles whose documents are never trained on, a shard for each domain.
BY_DOMAIN = ("out_of_distribution", "evaluation")


def share(digest: bytes) -> float:
    """A digest as a number from 0 to 1."""
    return int.from_bytes(digest, "big") / 2.0 ** (8 * len(digest))


def shard_of(role: str, share: float, test: float, validation: float) -> str:
    """The shard of a document at `share`, of a role with these shares held out."""
    return f"{role}/{'test' if share < test else 'validation' if share < test + validation else 'train'}"


def domain_name(domain: str) -> str:
    """A domain as part of a file's name and of a metric's."""
    name = re.sub(r"[^\w.+#-]+", "_", domain).lstrip(".+#-")
    # A file's name may have 255 bytes.
    return name.encode()[:120].decode(errors="ignore") or "_"
