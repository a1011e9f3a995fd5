"""Whether a model's name is one of the Hugging Face hub, asked once, before a loader asks for minutes."""

from __future__ import annotations

import os
import re
from pathlib import Path

from raysweep.errors import UserError, did_you_mean

TIMEOUT_S = 10.0


def find_on_hub(model: str, revision: str | None) -> None:
    """Raise `UserError` unless `model` is on the hub, or in the hub's cache on this machine.

    A name that only a missing folder can have is not asked for. Files here with a similar name are named in the error.
    """
    parent = Path(model).parent
    others = [path.name for path in parent.iterdir()] if parent.is_dir() else []
    hint = did_you_mean(Path(model).name, others)
    nested = parent != Path(".")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith(".") or (nested and parent.is_dir()):
        raise UserError(f"{model}: no such folder or file{hint}")
    from huggingface_hub import HfApi, try_to_load_from_cache  # It takes a moment.
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        if isinstance(try_to_load_from_cache(model, "config.json", revision=revision), str):
            return
        if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
            raise UserError(
                f"{model}: no such folder, and HF_HUB_OFFLINE keeps it from being looked for on the hub{hint}"
            )
        HfApi().model_info(model, revision=revision, timeout=TIMEOUT_S)
    except RevisionNotFoundError:
        raise UserError(f"{model} on the hub has no revision {revision}{hint}") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"{model} is neither a folder nor a model on the hub (or it is private: set HF_TOKEN){hint}"
        ) from None
    except UserError:
        raise
    except (HfHubHTTPError, OSError, RuntimeError, ValueError) as error:
        kind = type(error).__name__
        raise UserError(
            f"{model}: no such folder, and the hub cannot be reached ({kind}): check the network{hint}"
        ) from None
