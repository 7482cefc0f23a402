"""Sending a folder of decoders to the Hugging Face Hub, when asked; otherwise only saying what would be sent."""

from pathlib import Path
from typing import Any

from decoder.utils.errors import UserError


def push_to_hub(folder: Path, repo_id: str, *, send: bool = False, private: bool = True, api: Any = None) -> str:
    """Sends a folder to a model repository (made if it is not there) and returns its address; without `send`, the list of files.

    Raises:
        UserError: the name is no repository's, the folder lacks a model card, or the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"push={repo_id}: {' '.join(str(error).split())}") from None
    if "/" not in repo_id:
        raise UserError(f"push={repo_id}: expected USER/NAME")
    if not (folder / "README.md").is_file():
        raise UserError(f"{folder}: no README.md (model card) there; export the decoders again")
    if not send:
        return _listing(folder, repo_id, private)
    api = api or HfApi(library_name="palimpsest-decoder")
    try:
        api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=repo_id, repo_type="model", commit_message="Weight-to-object decoders"))
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(f"push={repo_id}: the Hub refused: {' '.join(str(error).split())}; are you logged in (hf auth login)?") from None


def _listing(folder: Path, repo_id: str, private: bool) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"  {path.relative_to(folder)}  {path.stat().st_size / 1024:.0f} KiB" for path in files]
    total = sum(path.stat().st_size for path in files) / 2**20
    seen = "private" if private else "public"
    head = f"Would send {len(files)} files, {total:.1f} MiB, to https://huggingface.co/{repo_id} ({seen} if new):"
    return "\n".join([head, *lines, "Nothing was sent: add send=true to send it."])
