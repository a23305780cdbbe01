"""Models, tokenizers and datasets from the Hugging Face Hub, kept under PRIMUS_HOME/hub with their revision pinned."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from primus.data.tokenizer import COMPANIONS
from primus.errors import DataError
from primus.home import primus_home

Kind = Literal["model", "dataset"]
What = Literal["model", "tokenizer", "dataset"]
KINDS: tuple[What, ...] = ("model", "tokenizer", "dataset")

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
TOKENIZER_FILES = ("tokenizer.json", *COMPANIONS)
MODEL_FILES = (
    *TOKENIZER_FILES,
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "*.safetensors",
)
COMMIT = re.compile(r"[0-9a-f]{40}")
HOW_WRITTEN = "a Hub id is written org/name or org/name@revision"


def is_hub_id(name: str) -> bool:
    """Whether `name` means something on the Hub: it is written ``org/name`` or ``org/name@revision``, and is no path.

    Where there is a directory ``org``, ``org/name`` is a misspelt path, unless it was fetched or names its revision.
    """
    if HUB_ID.fullmatch(name) is None or os.path.exists(name):
        return False
    in_a_directory = "@" not in name and os.path.isdir(name.partition("/")[0])
    return not in_a_directory or any(fetched(name, what) for what in KINDS)


def not_here(name: str) -> str:
    """For errors about a Hub id, which may have been meant as a path."""
    return "" if os.path.exists(name) else " (there is no file or directory of that name here)"


def split_id(name: str) -> tuple[str, str]:
    """(``org/name``, revision); the revision is ``main`` unless given after ``@``."""
    repository, _, revision = name.partition("@")
    return repository, revision or "main"


def hub_directory() -> Path:
    """Where everything fetched is kept, in the layout of the Hub's own cache."""
    return primus_home() / "hub"


def fetched(name: str, what: What) -> Path | None:
    """Directory of what an earlier ``fetch_...`` of the same `name` brought, or None. Needs no network."""
    try:
        commit = _note(name, what).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    kind = "dataset" if what == "dataset" else "model"
    snapshot = hub_directory() / f"{kind}s--{_flat(name)}" / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _note(name: str, what: What) -> Path:
    """File that says at which commit `what` of a Hub id was last fetched; written when all of it is there."""
    return hub_directory() / "fetched" / f"{what}--{_flat(name)}" / split_id(name)[1].replace("/", "--")


def _flat(name: str) -> str:
    return split_id(name)[0].replace("/", "--")


def fetch_model(name: str) -> Path:
    """Fetch weights (safetensors), ``config.json`` and tokenizer of a model. Returns their directory."""
    return _fetch(name, "model", _matching(MODEL_FILES), ("config.json", "*.safetensors"))


def fetch_tokenizer(name: str) -> Path:
    """Fetch ``tokenizer.json`` and its companions of a model. Returns their directory."""
    return _fetch(name, "tokenizer", _matching(TOKENIZER_FILES), ("tokenizer.json",))


def fetch_dataset(name: str, choose: Callable[[Sequence[str]], Sequence[str]]) -> Path:
    """Fetch files of a dataset. choose: picks from the names of all its files. Returns their directory, whose name is
    the commit. Raises DataError like the others, and whatever `choose` raises."""
    return _fetch(name, "dataset", choose, ())


def _matching(patterns: Sequence[str]) -> Callable[[Sequence[str]], Sequence[str]]:
    return lambda files: [file for file in files if any(fnmatchcase(file, pattern) for pattern in patterns)]


def _fetch(name: str, what: What, choose: Callable[[Sequence[str]], Sequence[str]], needed: Sequence[str]) -> Path:
    """Pin the revision to a commit, choose among its files, download those not there yet."""
    if not HUB_ID.fullmatch(name):
        raise DataError(f"'{name}' is not a Hub id", remedy=HOW_WRITTEN)
    endpoint = _endpoint()
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    kind: Kind = "dataset" if what == "dataset" else "model"
    repository, revision = split_id(name)
    api = HfApi(endpoint=endpoint)
    shown = without_password(api.endpoint)
    with _clear_errors(name, kind, shown):
        look_up = api.model_info if kind == "model" else api.dataset_info
        with _understood(name, shown):
            facts = look_up(repository, revision=revision)
            commit = str(facts.sha)
            files = [sibling.rfilename for sibling in facts.siblings or ()]
            if not COMMIT.fullmatch(commit) or not all(isinstance(file, str) for file in files):
                raise ValueError("no commit, or names that are none")
        chosen = choose(files)
        for pattern in needed:
            if not any(fnmatchcase(file, pattern) for file in chosen):
                raise DataError(
                    f"has no {pattern} (it has {', '.join(sorted(files)[:12]) or 'no files'})",
                    where=name,
                    remedy="choose a repository that has one",
                )
        with _understood(name, shown):
            directory = Path(
                api.snapshot_download(
                    repository,
                    repo_type=kind,
                    revision=commit,
                    cache_dir=hub_directory(),
                    allow_patterns=[glob.escape(file) for file in chosen],
                )
            )
    note = _note(name, what)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(commit, encoding="utf-8")
    return directory


def _endpoint() -> str | None:
    """HF_ENDPOINT, if it is set. Raises DataError when it is no web address; the client would fail when imported."""
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        parts = urlsplit(endpoint or "https://huggingface.co")
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise DataError(
            f"'{without_password(endpoint or '')}' is not a web address",
            where="HF_ENDPOINT",
            remedy="write it like https://huggingface.co, or unset it",
        )
    return endpoint


def without_password(address: str) -> str:
    """A web address for people to read: a mirror's may hold a user and a password."""
    scheme, mark, rest = address.rpartition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{mark}{place.rpartition('@')[2]}{slash}{path}"


@contextmanager
def _understood(name: str, endpoint: str) -> Iterator[None]:
    """Put around the client's reading of an answer, and around nothing else: there such errors are no bug of ours."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.HfHubHTTPError, errors.HFValidationError, UnicodeEncodeError):
        raise  # ValueErrors too, some of them
    except (ValueError, LookupError, TypeError, AttributeError, errors.FileMetadataError) as error:
        raise DataError(
            f"{endpoint} did not answer as a Hub does",
            where=name,
            remedy="check HF_ENDPOINT, a proxy or a login page",
        ) from error


@contextmanager
def _clear_errors(name: str, kind: Kind, endpoint: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one line with a remedy."""
    import httpx
    from huggingface_hub import errors, get_token

    repository, revision = split_id(name)
    token = "the token in use may not read it" if get_token() else "no token is set"
    set_token = "set HF_TOKEN to a token of an account that may read it"
    page = f"{endpoint}/{'datasets/' if kind == 'dataset' else ''}{repository}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise DataError(
            f"access to this {kind} is restricted, and {token}",
            where=name,
            remedy=f"ask for access at {page} and {set_token}",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(
            f"has no revision '{revision}'", where=name, remedy="give a branch, a tag or a full commit"
        ) from error
    except errors.RepositoryNotFoundError as error:
        other = "dataset" if kind == "model" else "model"
        raise DataError(
            f"there is no such {kind} on {endpoint}, or it is private and {token}{not_here(name)}",
            where=name,
            remedy=f"check the spelling, {HOW_WRITTEN}; is it a {other}? If private, {set_token}",
        ) from error
    except errors.OfflineModeIsEnabled as error:
        forbidden = f"HF_HUB_OFFLINE forbids fetching it{not_here(name)}"
        raise DataError(forbidden, where=name, remedy="unset HF_HUB_OFFLINE") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        refused = f"{endpoint} answered {status} {error.response.reason_phrase}"
        remedy = set_token if status in {401, 403} else "try again later; what was fetched is kept"
        raise DataError(refused, where=name, remedy=remedy) from error
    except errors.HFValidationError as error:
        raise DataError(f"is not a Hub id: {error}{not_here(name)}", where=name, remedy=HOW_WRITTEN) from error
    except (UnicodeEncodeError, httpx.LocalProtocolError):
        # not `from error`: it holds the token
        raise DataError(
            "HF_TOKEN holds a character that no token has", where=name, remedy="set it again, or unset it"
        ) from None
    except httpx.InvalidURL as error:
        raise DataError(f"'{endpoint}' is not a web address: {error}", where="HF_ENDPOINT") from error
    except (httpx.TransportError, errors.LocalEntryNotFoundError) as error:
        cause = str(error.__cause__ or error).splitlines()[0] or type(error).__name__
        raise DataError(
            f"{endpoint} cannot be reached: {cause}{not_here(name)}",
            where=name,
            remedy="check the network, or HF_ENDPOINT if you use a mirror; or fetch elsewhere and give the directory",
        ) from error
