"""Whether models can be fetched."""

import urllib.error
import urllib.request

from palinka.doctor.finding import Finding, State

SECONDS = 4.0
_LOCAL = "models that are on this computer, and the bundled one, still work"


def hub() -> list[Finding]:
    """Ask the Hugging Face hub for its front page."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return [Finding("hub", f"not asked, as HF_HUB_OFFLINE is set; {_LOCAL}", State.REMARK)]
    request = urllib.request.Request(ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # it has answered
    except (OSError, ValueError) as error:
        why = " ".join(str(getattr(error, "reason", error)).split())
        return [Finding("hub", f"{ENDPOINT} not reached ({why}); {_LOCAL}", State.REMARK)]

    return [Finding("hub", f"{ENDPOINT} answers")]
