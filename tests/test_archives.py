"Archives as they come from strangers: damaged in every byte, packed to harm, and read by other programs."
import io
import os
import random
import resource
import shutil
import subprocess
import tarfile
import tempfile
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from flame_vision.core.errors import FlameVisionError, MissingPathError, RegistryError, TamperedError
from flame_vision.versioning import archive_folder, write_archive
from flame_vision.versioning.archives import END, LIMIT, entry_header, filling
from flame_vision.versioning.manifest import FileEntry, Manifest, file_entry, manifest_text, sealed


class Folder:
    "A version in a plain folder."
    def __init__(self, path, manifest): self.path, self.manifest = path, manifest

    @contextmanager
    def fetch(self, file): yield self.path / file


FILES = {"model.safetensors": b"\0\1\2weights" * 9, "config.yaml": b"name: resnet18\n", "empty.txt": b""}


def described(files, **said):
    "A manifest, whatever its files are called."
    entries = {name: FileEntry(size=size, sha256=digest) for name, (size, digest) in files.items()}
    usual = {"name": "digits", "version": "1.0.0", "created": "2026-01-01", "architecture": "resnet18", "parameters": 1}
    return sealed(Manifest(**usual | said, files=entries))


def version_in(folder, contents=FILES, **said):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items(): (folder / name).write_bytes(content)
    manifest = described({name: (len(c), file_entry(folder / name).sha256) for name, c in contents.items()}, **said)
    (folder / "manifest.json").write_bytes(manifest_text(manifest).encode())
    return Folder(folder, manifest)


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A folder to work in, and one that takes temporary files; after the test, nothing may be left in the second, nor lie beside them."
    (tmp_path / "work").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "work"
    assert not os.listdir(tmp_path / "temporary") and set(os.listdir(tmp_path)) == {"work", "temporary"}
    assert not list((tmp_path / "work").glob("**/.*"))


@pytest.fixture
def packed(place): return write_archive(version_in(place / "version"), place / "digits.tar")


def refuses(content, kind=RegistryError, path="bad.tar"):
    "Reading fails in one line and leaves nothing."
    if content is not None: Path(path).write_bytes(content)
    with pytest.raises(kind) as caught, archive_folder(path): pass
    message = str(caught.value)
    assert isinstance(caught.value, FlameVisionError) and "\n" not in message and len(message) < 400, message
    return message


def forged(manifest, contents, folder="digits/1.0.0"):
    "An archive laid out as ours, by whatever manifest."
    page = manifest_text(manifest).encode()
    parts = [(f"{folder}/manifest.json", page), *((f"{folder}/{name}", content) for name, content in contents)]
    return b"".join(entry_header(path, len(c)) + c + filling(len(c)) for path, c in parts) + END


def test_there_and_back(place, packed):
    with archive_folder(packed) as folder:
        assert {f.name: f.read_bytes() for f in folder.iterdir()} == {f.name: f.read_bytes() for f in (place / "version").iterdir()}
        assert write_archive(Folder(folder, version_in(place / "version").manifest), place / "again.tar").read_bytes() == packed.read_bytes()
    assert not folder.exists()
    with archive_folder(packed, beside=place) as folder: assert folder.is_relative_to(place)


def test_every_flipped_byte_is_noticed(packed):
    whole = bytearray(packed.read_bytes())
    assert 4000 < len(whole) < 9000
    for at in range(len(whole)):
        whole[at] ^= 1 << random.randrange(8)
        kept = bytes(whole)
        refuses(kept)
        whole[:] = packed.read_bytes()


def test_every_length_is_noticed(packed):
    whole = packed.read_bytes()
    for length in range(0, len(whole), 3): refuses(whole[:length])
    assert "copy it again" in refuses(whole[:-1], TamperedError)
    for more in (b"\0", END, b"x" * 512, whole): assert "more than its manifest lists" in refuses(whole + more, TamperedError)


@pytest.mark.parametrize("name", ["../x", "..", "/etc/x", "a/b", "C:\\x", "a\0b", "n" * 10_000, "con", "NUL.txt", "manifest.json",
                                  "Manifest.JSON", "tombstone.json", ".hidden",
                                  "", "a\nb", "x.", "~", "$(x)"], ids=lambda n: repr(n[:12]))
def test_names_that_no_version_has(place, name):
    digest = "a" * 64
    refuses(forged(described({name: (1, digest)}), []))
    if "." in name.lower().strip("."): return  # as a model's name it would do
    with pytest.raises(RegistryError): write_archive(version_in(place / "v", name=name), "x.tar")


@pytest.mark.parametrize("said, folder", [
    ({"name": "../../digits"}, "../../digits/1.0.0"), ({"name": "/digits"}, "/digits/1.0.0"), ({"version": "../1.0.0"}, "digits/../1.0.0"),
    ({"version": "1.0"}, "digits/1.0"),
    ({"version": "x"}, "digits/x"), ({"name": "other"}, "digits/1.0.0"), ({"name": "a\0b"}, "a\0b/1.0.0"),
    ({"name": "n" * 5000}, "n" * 90 + "/1.0.0"),
    ({"name": "con"}, "con/1.0.0")], ids=str)
def test_models_that_there_cannot_be(place, said, folder):
    refuses(forged(described({}, **{k: v[:400] for k, v in said.items()}), [], folder))


def test_two_files_of_one_name(place):
    content = b"x"
    digest = file_entry(version_in(place / "v", {"a.txt": content}).path / "a.txt").sha256
    assert "twice" in refuses(forged(described({"a.txt": (1, digest), "A.txt": (1, digest)}), [("a.txt", content), ("A.txt", content)]))


def test_what_is_listed_and_what_is_there(place):
    version = version_in(place / "v", {"a": b"1", "b": b"2"})
    digests = {name: (1, entry.sha256) for name, entry in version.manifest.files.items()}
    refuses(forged(described(digests), [("a", b"1")]))                                # one is missing
    refuses(forged(described(digests), [("a", b"1"), ("b", b"2"), ("c", b"3")]))      # one too many
    refuses(forged(described(digests), [("b", b"2"), ("a", b"1")]))                   # another order
    refuses(forged(described(digests), [("a", b"1"), ("a", b"1")]))                   # one twice
    refuses(forged(described(digests), [("a", b"2"), ("b", b"1")]))                   # swapped contents
    refuses(forged(described(digests), [("a", b"1"), ("b", b"2")], "other/1.0.0"))    # another place
    with archive_folder(Path("good.tar")) if Path("good.tar").write_bytes(forged(described(digests), [("a", b"1"), ("b", b"2")])) else None as folder:
        assert (folder / "b").read_bytes() == b"2"


@pytest.mark.parametrize("size", [10 ** 15, 2 ** 62, 10 ** 30, -1, -512, 0, 2])
def test_sizes_that_lie(place, size):
    digest = file_entry(version_in(place / "v", {"a": b"1"}).path / "a").sha256
    honest = forged(described({"a": (1, digest)}), [("a", b"1")])
    lying = forged(described({"a": (size, digest)}), [("a", b"1")])
    tracemalloc.start()
    refuses(lying)
    header = honest.index(b"digits/1.0.0/a\0")
    if 0 <= size < 2 ** 63: refuses(honest[:header] + entry_header("digits/1.0.0/a", size) + honest[header + 512:])
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_a_manifest_that_claims_to_be_large(place):
    for size in (LIMIT, LIMIT + 1, 8 ** 11 - 1, 10 ** 15):
        tracemalloc.start()
        refuses(entry_header("digits/1.0.0/manifest.json", size) + b"{}")
        assert tracemalloc.get_traced_memory()[1] < (1 << 22) + 2 * LIMIT * (size == LIMIT)
        tracemalloc.stop()
    for content in (b"[" * 100_000, b"{}", b"null", b"\xff" * 10, b'{"a": ' * 50_000, b"9" * 50_000):
        refuses(entry_header("digits/1.0.0/manifest.json", len(content)) + content + filling(len(content)) + END)


def theirs(**changes):
    "A tar of another program with the right files, one entry of which is not what it should be."
    version, out = version_in(Path("theirs")), io.BytesIO()
    kind, name, at = changes.get("type", tarfile.REGTYPE), changes.get("name"), changes.get("at", 1)
    with tarfile.open(fileobj=out, mode="w", format=changes.get("format", tarfile.GNU_FORMAT)) as archive:
        for i, file in enumerate(("manifest.json", *version.manifest.files)):
            info, content = tarfile.TarInfo(f"digits/1.0.0/{file}"), (version.path / file).read_bytes()
            info.size = len(content)
            if i == at:
                info.type, info.linkname = kind, changes.get("link", "")
                info.name, info.size = name or info.name, info.size if kind == tarfile.REGTYPE else 0
                info.pax_headers, info.mode = changes.get("pax", {}), changes.get("mode", 0o644)
            archive.addfile(info, io.BytesIO(content[:info.size]))
    return out.getvalue()


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("changes", [
    {"type": tarfile.SYMTYPE, "link": "/etc/passwd"}, {"type": tarfile.SYMTYPE, "link": "../../../x"},
    {"type": tarfile.LNKTYPE, "link": "/etc/passwd"},
    {"type": tarfile.CHRTYPE}, {"type": tarfile.BLKTYPE}, {"type": tarfile.FIFOTYPE}, {"type": tarfile.DIRTYPE}, {"type": b"S"},
    {"type": b"g"}, {"type": b"K"},
    {"name": "../../escaped"}, {"name": "/tmp/escaped"}, {"name": "digits/1.0.0/../../escaped"}, {"name": "digits/1.0.0/" + "n" * 10_000},
    {"mode": 0o4777},
    {"format": tarfile.PAX_FORMAT, "pax": {"path": "/tmp/escaped"}}, {"format": tarfile.USTAR_FORMAT}], ids=str)
def test_entries_that_harm(place, changes, at): refuses(theirs(**changes, at=at))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "zip"])
def test_bombs_and_other_formats_are_named(place, mode):
    out = io.BytesIO()
    if mode == "zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive: archive.writestr("digits/1.0.0/manifest.json", bytes(1 << 24))
    else:
        with tarfile.open(fileobj=out, mode=mode) as archive:
            info = tarfile.TarInfo("digits/1.0.0/manifest.json")
            info.size = 1 << 24
            archive.addfile(info, io.BytesIO(bytes(1 << 24)))
    tracemalloc.start()
    assert "is packed by" in (said := refuses(out.getvalue())) or "is a zip file" in said
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_what_is_no_file(place):
    os.mkfifo("pipe")
    for path in ("pipe", ".", "/dev/zero"): assert "not a plain file" in refuses(None, path=path)
    os.unlink("pipe")
    for path in ("nowhere.tar", "no/where.tar"): refuses(None, MissingPathError, path)
    for path in ("a\0b", "n" * 10_000): refuses(None, path=path)
    refuses(b"")


def test_other_programs_read_it(place):
    long = version_in(place / "long", {**FILES, "block.bin": bytes(512), "f" * 100: b"long"}, name="n" * 100, version="1.0.0.dev12345678901234567890")
    path = write_archive(long, place)
    assert path.name.startswith("nnn") and path.suffix == ".tar"
    with tarfile.open(path) as archive:
        archive.extractall("python", filter="data")
        assert all(m.isreg() and m.mode == 0o644 for m in archive)
    wanted = {f.name: f.read_bytes() for f in long.path.iterdir()}
    folders = ["python"]
    if shutil.which("tar"):
        os.mkdir("gnu")
        assert subprocess.run(["tar", "xf", path, "-C", "gnu"], capture_output=True, text=True, check=True).stderr == ""
        folders.append("gnu")
    for folder in folders:
        assert {f.name: f.read_bytes() for f in Path(folder, "n" * 100, "1.0.0.dev12345678901234567890").iterdir()} == wanted
    with archive_folder(path) as folder: assert {f.name: f.read_bytes() for f in folder.iterdir()} == wanted


@pytest.mark.parametrize("size", [8 ** 11 - 1, 8 ** 11, 10 ** 12])
def test_sizes_beyond_octal(place, size):
    with open("large.tar", "wb") as file:
        file.write(entry_header("large/1.0.0/model.safetensors", size))
        file.truncate(512 + size + len(filling(size)) + len(END))
    with tarfile.open("large.tar") as archive: assert [m.size for m in archive] == [size]
    os.unlink("large.tar")


def test_memory_is_bounded(place):
    version = version_in(place / "v", {"model.safetensors": bytes(48 << 20)})
    tracemalloc.start()
    with archive_folder(write_archive(version, "large.tar")) as folder: assert (folder / "model.safetensors").stat().st_size == 48 << 20
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"x" + p.read_bytes()[1:]), lambda p: p.write_bytes(p.read_bytes() + b"x"),
    lambda p: p.write_bytes(b""), Path.unlink])
def test_a_damaged_version_is_not_archived(place, damage):
    version = version_in(place / "v")
    write_archive(version, "out.tar")
    before = Path("out.tar").read_bytes()
    damage(version.path / "model.safetensors")
    with pytest.raises(RegistryError): write_archive(version, "out.tar")
    assert Path("out.tar").read_bytes() == before and sorted(os.listdir()) == ["out.tar", "v"]


def test_full_disk(place, packed):
    version, before = version_in(place / "v", {"model.safetensors": bytes(1 << 20)}), packed.read_bytes()
    large = write_archive(version, "large.tar")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, usual[1]))
    try:
        with pytest.raises(RegistryError, match="File too large; what was there before is untouched"): write_archive(version, packed)
        with pytest.raises(RegistryError, match="could not be unpacked: File too large"), archive_folder(large): pass
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert packed.read_bytes() == before


def test_an_error_of_the_user_stays_his_own(packed):
    with pytest.raises(OSError, match="mine"), archive_folder(packed): raise OSError("mine")
    with pytest.raises(KeyboardInterrupt), archive_folder(packed): raise KeyboardInterrupt
