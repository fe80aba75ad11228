"""Archives from elsewhere: checked against a checksum, unpacked into one folder and nowhere else."""

import hashlib
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from contrastive.errors import InputError
from contrastive.pictures import printable, reason_of

__all__ = ["unpack"]


def unpack(
    archive: Path,
    target: Path,
    *,
    checksum: str | None = None,
    most_members: int = 100_000,
    most_bytes: int = 20_000_000_000,
) -> None:
    """Unpacks a zip or tar file, of whom nothing is believed: every name is looked at before a byte is written.

    torchvision's own lets a tar file write beside its target on Python 3.11 (vision issue 9517).

    Arguments:
        archive: the file, of any compression that `tarfile` reads, or a zip.
        target: the folder; made.
        checksum: its MD5 or SHA-256 in hexadecimal digits; None: unknown.
        most_members: how many files and folders there may be.
        most_bytes: how many bytes they may be, unpacked.

    Raises:
        InputError: for another checksum; a member that is absolute, leads out of the folder, or is anything but a file
            or a folder (a link, a device, a pipe); too many of them or too many bytes: nothing is written then. For a
            damaged archive, of which what came before the damage may have been written.
    """
    where = printable(str(archive))
    try:
        if checksum is not None:
            with archive.open("rb") as file:
                found = hashlib.file_digest(file, "md5" if len(checksum) == 32 else "sha256").hexdigest()
            if found != checksum.lower():
                raise InputError(f"{where} has the checksum {found}, expected {checksum}: damaged, or another file")
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                listed = opened.infolist()
                _check(where, ((m.filename, m.file_size, _is_plain(m)) for m in listed), most_members, most_bytes)
                opened.extractall(target)
            return
        with tarfile.open(archive) as packed:
            members: list[tarfile.TarInfo] = []
            _check(where, _listed(packed, members), most_members, most_bytes)
            packed.extractall(target, members, filter="data")
    except InputError:
        raise
    except Exception as error:  # every format has exceptions of its own for a damaged file
        raise InputError(f"{where} cannot be unpacked ({reason_of(error)})") from error


def _listed(packed: tarfile.TarFile, members: list[tarfile.TarInfo]) -> Iterator[tuple[str, int, bool]]:
    """The members of a tar file one by one: a list of a million would take the memory before it could be refused."""
    for member in packed:
        members.append(member)
        yield member.name, member.size, member.isreg() or member.isdir()


def _is_plain(member: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was packed on a system without such kinds
    return kind in (0, stat.S_IFREG, stat.S_IFDIR)


def _check(where: str, members: Iterator[tuple[str, int, bool]], most_members: int, most_bytes: int) -> None:
    count = size = 0
    for name, length, plain in members:
        count, size = count + 1, size + length
        if count > most_members:
            raise InputError(f"{where} holds more than {most_members} files: refused")
        if size > most_bytes:
            raise InputError(f"{where} unpacks to more than {most_bytes} bytes: refused")
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or "\0" in name or (path.parts[:1] and path.parts[0].endswith(":")):
            raise InputError(f"{where} holds {printable(name)!r}, which leads out of its folder: refused")
        if not plain:
            raise InputError(f"{where} holds {printable(name)!r}, which is a link or a device: refused")
