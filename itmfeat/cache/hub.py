"""Caches to and from the Hugging Face hub, as dataset repositories; whole, or not at all."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, errors, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, validate_repo_id

from itmfeat.cache.card import Facts, caveats, write_card
from itmfeat.cache.folder import describe, open_cache, verify
from itmfeat.cache.index import read_index
from itmfeat.errors import DataError, ItmfeatError, Note, UsageError, disk_full, silent
from itmfeat.locks import lock_file

LIMIT = constants.MAX_HTTP_DOWNLOAD_SIZE
"""Bytes of the largest file that the hub gives out over plain HTTP: 50 GB."""

_WANTED = re.compile(r"dataset\.h5|(image|text)/[^/\\.\0-\x1f][^/\\\0-\x1f]*\.h5")  # nothing else is taken
_BLOCK = 1 << 20
_TRANSPORT = errors.HTTPError  # of httpx or httpx2, whichever the library uses


@dataclass(frozen=True)
class Parcel:
    """What `push` uploads."""

    files: dict[str, Path]  # path in the repository -> file
    card: str  # README.md
    notes: list[str]  # what its owner should know before


@dataclass(frozen=True)
class _Remote:
    """A file of a cache on the hub."""

    path: str
    size: int
    digest: str  # SHA-256; of the few files that are not in large file storage git's SHA-1


@dataclass(frozen=True)
class _Source:
    """One commit of a repository."""

    api: HfApi
    repo: str
    commit: str

    def download(self, files: list[_Remote], folder: Path) -> None:
        """Files into a folder, each as NAME.part until it is whole; goes on behind what is there."""
        parts = {file: folder / f"{file.path}.part" for file in files if not (folder / file.path).exists()}
        got = {file: part.stat().st_size if part.exists() else 0 for file, part in parts.items()}
        for file, part in parts.items():
            part.parent.mkdir(parents=True, exist_ok=True)
            if file.size > LIMIT:
                raise DataError(
                    f"{file.path} of {self.repo} is larger than {LIMIT // 10**9} GB, too large to be pulled; "
                    "ask its owner for a subset or for int8"
                )
        needed = sum(file.size - got[file] for file in parts)
        if needed > shutil.disk_usage(folder.parent).free:
            raise ItmfeatError(
                f"the disk lacks room for {needed / 1e9:.1f} GB of {self.repo}; make room, or name a folder "
                "on another disk with --cache"
            )
        headers = {**build_hf_headers(library_name="itmfeat"), "Accept-Encoding": "identity"}
        for file, part in parts.items():
            url = hf_hub_url(
                self.repo, file.path, repo_type="dataset", revision=self.commit, endpoint=self.api.endpoint
            )
            start = got[file] if got[file] <= file.size else 0
            with part.open("ab" if start else "wb") as out:
                http_get(
                    url,
                    out,
                    resume_size=start,
                    headers=headers,
                    expected_size=file.size,
                    displayed_filename=file.path,
                )
            os.replace(part, folder / file.path)


def pack(cache: Path, repo: str, *, revision: str | None = None) -> Parcel:
    """What of a cache goes to the hub: undamaged index and feature files, and a card. Reads every byte.

    A DataError if a file is damaged or not finished.
    """
    with _one_sentence(repo, revision):
        validate_repo_id(repo)
    opened = open_cache(cache)
    if left := opened.unfinished():
        raise DataError(f"{left[0]} is not finished: repeat the extraction or delete it, then push again")
    if damaged := verify(cache):
        raise DataError("; ".join(damaged))
    facts = describe(opened)
    if not facts["features"]:
        raise DataError(f"{cache} holds no features to push; run `itmfeat extract`")
    names = ["dataset.h5", *(f"{file['kind']}/{file['name']}.h5" for file in facts["features"])]
    files = {name: cache / name for name in names}
    return Parcel(files, write_card(facts, repo, revision), [*caveats(facts), *_too_large(facts)])


def _too_large(facts: Facts) -> list[str]:
    return [
        f"{file['name']} is larger than {LIMIT // 10**9} GB, too large for `cache pull`: "
        "make it smaller with `itmfeat cache subset`, or extract it with --dtype int8"
        for file in facts["features"]
        if file["bytes"] > LIMIT
    ]


def push(
    cache: Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    note: Note = silent,
) -> str:
    """Upload a cache into a dataset repository, made if it is not there; returns the address of the commit.

    All files appear in one commit. What an interrupted push has uploaded is not uploaded again. Feature files
    that only the repository has are kept; another index there is a DataError.
    """
    parcel = pack(cache, repo, revision=revision)
    for text in parcel.notes:
        note(text)
    api = HfApi(library_name="itmfeat")
    with _one_sentence(repo, revision):
        repo = api.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True).repo_id
        if revision:
            api.create_branch(repo, repo_type="dataset", branch=revision, exist_ok=True)
        _check_place(api, repo, revision, parcel, private, note)
        additions = [CommitOperationAdd(name, file) for name, file in parcel.files.items()]
        card = CommitOperationAdd("README.md", parcel.card.encode())
        commit = api.create_commit(
            repo,
            [*additions, card],
            commit_message=f"itmfeat cache of {open_cache(cache).index.name}",
            repo_type="dataset",
            revision=revision,
        )
    return str(commit.commit_url)


def _check_place(
    api: HfApi, repo: str, revision: str | None, parcel: Parcel, private: bool, note: Note
) -> None:
    """Nothing is shown to more people than asked, and no other dataset is replaced."""
    _, remote, hidden = _look(api, repo, revision)
    if private and not hidden:
        raise UsageError(f"{repo} exists and is public; name another, or make it private in its settings")
    there = remote.get("dataset.h5")
    if there and not _same(parcel.files["dataset.h5"], there):
        raise DataError(
            f"{repo} holds a cache with another dataset.h5; name another repository or --revision"
        )
    if kept := sorted(remote.keys() - parcel.files.keys()):
        note(
            f"{repo} keeps {', '.join(kept)}, which its new card does not describe; pull it first to push all"
        )


def pull(repo: str, cache: Path | None = None, *, revision: str | None = None, note: Note = silent) -> Path:
    """Download a cache from a dataset repository and check every byte of it before it counts as one.

    By default the folder is caches/NAME, with the dataset's name. An interrupted pull goes on where it was. A
    cache that is there and has the same index gets the feature files that it lacks; others are not touched.
    """
    api = HfApi(library_name="itmfeat")
    with _one_sentence(repo, revision):
        commit, remote, _ = _look(api, repo, revision)
        if "dataset.h5" not in remote:
            raise DataError(f"{repo} holds no cache of itmfeat: it has no dataset.h5")
        parent = cache.parent if cache else Path("caches")
        # A commit never changes, so what is in this folder can be gone on with.
        name = f".pull-{repo.replace('/', '--')}@"
        work = parent / f"{name}{commit}"
        work.mkdir(parents=True, exist_ok=True)
        for other in set(parent.glob(f"{name}*")) - {work}:
            note(
                f"{other} is left of a pull of another commit; delete it if you do not want to go on with it"
            )
        lock = lock_file(work / "lock", os.O_RDWR | os.O_CREAT, f"another pull is writing {work}")
        try:
            made = _fetch(_Source(api, repo, commit), remote, work / "cache", cache, note)
        except DataError:  # nothing in it can be used
            shutil.rmtree(work)
            raise
        else:
            shutil.rmtree(work)
        finally:
            os.close(lock)
    return made


def _fetch(source: _Source, remote: dict[str, _Remote], new: Path, cache: Path | None, note: Note) -> Path:
    """Into the folder `new`, then checked, then to where it belongs."""
    source.download([remote.pop("dataset.h5")], new)
    with _intact(source.repo, new):
        index = read_index(new / "dataset.h5")
    if cache is None and not re.fullmatch(r"\w[\w.-]*", index.name):
        raise DataError(f"{source.repo} holds a dataset called {index.name!r}; name a folder with --cache")
    target = cache or Path("caches") / index.name
    exists = target.exists() and (not target.is_dir() or any(target.iterdir()))
    missing = _missing(target, index.digest, remote) if exists else list(remote.values())
    if exists and not missing:
        note(f"{target} holds all of {source.repo} already")
        return target
    source.download(missing, new)
    with _intact(source.repo, new):
        if damaged := verify(new):
            raise DataError(damaged[0])
    if not exists:
        os.replace(new, target)
        return target
    for file in missing:
        (target / file.path).parent.mkdir(exist_ok=True)
        os.replace(new / file.path, target / file.path)
    return target


def _missing(target: Path, digest: str, remote: dict[str, _Remote]) -> list[_Remote]:
    """Feature files that a cache lacks; a DataError if it has another index or other files of these names."""
    if not (target / "dataset.h5").exists():
        raise DataError(f"{target} is there and no cache; name another folder with --cache")
    if read_index(target / "dataset.h5").digest != digest:
        raise DataError(f"{target} holds another dataset; name another folder with --cache")
    there = [file for file in remote.values() if (target / file.path).exists()]
    for file in there:
        if not _same(target / file.path, file):
            raise DataError(f"{target / file.path} is another file than on the hub; name another --cache")
    return [file for file in remote.values() if file not in there]


def _look(api: HfApi, repo: str, revision: str | None) -> tuple[str, dict[str, _Remote], bool]:
    """The commit of a revision, the files of a cache in it by path, and whether the repository is private."""
    info = api.dataset_info(repo, revision=revision, files_metadata=True)
    files = [
        _Remote(one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs else one.blob_id or "")
        for one in info.siblings or []
        if _WANTED.fullmatch(one.rfilename)
    ]
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):  # it becomes the name of a folder
        raise DataError(f"{api.endpoint} does not answer as a hub; check HF_ENDPOINT")
    return str(info.sha), {file.path: file for file in files}, bool(info.private)


def _same(path: Path, remote: _Remote) -> bool:
    """Whether a file has the bytes of one on the hub."""
    if path.stat().st_size != remote.size:
        return False
    git = hashlib.sha1(f"blob {remote.size}\0".encode(), usedforsecurity=False)
    digest = hashlib.sha256() if len(remote.digest) == 64 else git
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest() == remote.digest


@contextmanager
def _intact(repo: str, folder: Path) -> Iterator[None]:
    """What is wrong with files that came from the hub can be mended there alone."""
    try:
        yield
    except DataError as error:
        reason = str(error).replace(f"{folder}/", "").partition(";")[0]
        raise DataError(
            f"nothing of {repo} was taken, for {reason}; pull it once more, then tell its owner"
        ) from None


@contextmanager
def _one_sentence(repo: str, revision: str | None) -> Iterator[None]:
    """What the library raises, as an error of ours."""
    try:
        yield
    except (errors.HfHubHTTPError, _TRANSPORT, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) else None  # of an upload in a thread
        raise _told(cause if isinstance(cause, Exception) else error, repo, revision) or error from None


def _told(error: Exception, repo: str, revision: str | None) -> ItmfeatError | None:
    """The first sentence that fits; None for what did not come from the hub."""
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    hub, login = constants.ENDPOINT, "log in with `hf auth login` or set HF_TOKEN"
    cases: list[tuple[bool, type[ItmfeatError], str]] = [
        (
            isinstance(error, errors.HFValidationError),
            UsageError,
            f"{repo!r} is no OWNER/NAME of a repository",
        ),
        (isinstance(error, errors.OfflineModeIsEnabled), ItmfeatError, "HF_HUB_OFFLINE is set; unset it"),
        (
            isinstance(error, errors.GatedRepoError),
            DataError,
            f"{repo} is gated: ask for access at {hub}, {login}",
        ),
        (
            isinstance(error, errors.RepositoryNotFoundError),
            DataError,
            f"there is no dataset repository {repo} at {hub} that you may see; check the name, or {login}",
        ),
        (
            isinstance(error, errors.RevisionNotFoundError),
            DataError,
            f"{repo} has no revision {revision}; name another with --revision, or none",
        ),
        (status == 401, ItmfeatError, f"{hub} does not know you; {login}"),
        (
            status == 403,
            ItmfeatError,
            f"your token gives no right to do this with {repo}; {login}, with one that does",
        ),
        (status > 0, ItmfeatError, f"{hub} refused ({first}); repeat the command later"),
        (
            isinstance(error, _TRANSPORT),
            ItmfeatError,
            f"cannot reach {hub} ({first}); check the network and repeat, it goes on where it was",
        ),
        (isinstance(error, OSError) and not error.errno, ItmfeatError, f"{first}; repeat the command"),
        (
            isinstance(error, ValueError | RuntimeError),
            ItmfeatError,
            f"the transfer failed ({first}); repeat it",
        ),
    ]
    kind, text = next(((kind, text) for fits, kind, text in cases if fits), (None, ""))
    if kind:
        return kind(text)
    return disk_full(error, "the cache", ", it goes on where it was") if isinstance(error, OSError) else None
