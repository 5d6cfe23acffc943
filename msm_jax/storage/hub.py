"""What models and data sets from the Hugging Face hub have in common: errors in one line, a quiet library."""

import contextlib
import sys
from collections.abc import Iterator


def reason(error: Exception, name: str, revision: str | None, data: bool = False) -> str:
    """What is wrong with the repository `name` and what to do, in one line; holds no token. `error` is one of
    huggingface_hub, or of its HTTP library, whichever that is. A model, unlike `data`, may be a folder, too."""
    import huggingface_hub
    from huggingface_hub import errors

    hub = huggingface_hub.constants.ENDPOINT
    page = f"{hub}/datasets/{name}" if data else f"{hub}/{name}"
    folder = f"{'data' if data else 'models'}/{name.split('/')[1]}"
    options = (" --repo-type dataset" if data else "") + (f" --revision {revision}" if revision else "")
    by_hand = f"run `hf download {name}{options} --local-dir {folder}` where that works and name " + (
        f"its files in {folder}" if data else f"the folder {folder} in place of {name}"
    )
    no_folder = "" if data else "no such folder here, and "
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return f"gated; accept its licence at {page}, set HF_TOKEN to a token of that account, and start again"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{no_folder}no such repository at {hub}; mend the name (a private one needs HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"this repository has no revision {revision}; see {page}/branches"
    if isinstance(error, errors.HFValidationError):
        return f"{no_folder}no name that a repository can have; mend it"
    if status in (401, 403):
        return f"{hub} refuses ({status}); see that HF_TOKEN is valid and may read this repository, and start again"
    if isinstance(error, UnicodeError):
        return "HF_TOKEN holds characters that no token has; set it again"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        return f"{error.strerror} ({error.filename or huggingface_hub.constants.HF_HUB_CACHE}); HF_HOME moves the cache"
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        where = "not (whole) in the cache" if data else "no such folder here nor (whole) in the cache"
        return f"{where}, and HF_HUB_OFFLINE is set; unset it, or {by_hand}"
    what = f"answers with an error ({status})" if status else f"cannot be reached ({type(cause).__name__})"
    return f"{no_folder}{hub} {what}; start again later (whole files are kept), or {by_hand}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    # Its warnings advise on tokens and retries; what is wrong in the end is told as an error.
    from huggingface_hub import utils

    before, bars = utils.logging.get_verbosity(), not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity_error()
    if bars and not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(before)
        if bars:
            utils.enable_progress_bars()
