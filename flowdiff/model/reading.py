"""Reading files that may come from anyone: what a file says is measured before it is read, and nothing in it is run.

A checkpoint is a zip of uncompressed records, one of them a pickle, which torch reads with `weights_only=True`. What
is refused beforehand is what torch would unpack: compressed records, records that are longer than the file, too many
of them, a pickle that would take minutes, TorchScript, the formats before the zip. Every function raises `Unreadable`,
whose message is a reason without the file's name, for anything that keeps a file from being read.
"""

import math
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flowdiff.errors import spell
from flowdiff.files import Unreadable, require_file

RECORDS = 50_000  # of a checkpoint: a record is a tensor's storage
PICKLE = 1 << 20  # bytes of its pickle, and PICKLE_EACH for every record (100 in fact), up to PICKLE_MOST
PICKLE_EACH = 200
PICKLE_MOST = 4 << 20
DIRECTORY_EACH = 1000  # bytes of the zip's directory for a record: 100 in fact
HEADER = 1 << 24  # bytes of the header of a safetensors file
END = struct.Struct("<4s4H2LH")  # the end of a zip: disks, entries, length and offset of the directory, of a comment
END64 = struct.Struct("<4sQ2H2L4Q")  # the same of one with larger numbers, which lies before its locator
LOCATOR = struct.Struct("<4sLQL")


# -- checkpoints ------------------------------------------------------------------------------------------


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """What torch has saved in a file: tensors (on the CPU) and plain values. Nothing in it is run.

    Raises:
        Unreadable: no such file, not one of torch's zips, cut off, larger inside than outside, or with objects in it.
    """
    file = require_file(path)
    try:
        with file.open("rb") as opened:
            _check_zip(opened)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise Unreadable(error.strerror or "permission denied") from error
    except Unreadable:
        raise
    except Exception as error:
        reason = str(error).lower()
        if "unsupported global" in reason or "unsupported class" in reason:
            why = "it holds Python objects, which are not run; only tensors and plain values are read"
            raise Unreadable(why) from error
        raise _damaged(file) from error
    return content


def _damaged(file: Path, more: str = "") -> Unreadable:
    size = file.stat().st_size
    return Unreadable(f"not a readable checkpoint; is it cut off? ({size:,} bytes{more})")


def _check_zip(opened: BinaryIO) -> None:
    """Raise unless the file is a zip as torch writes it, no larger inside than outside."""
    size = os.fstat(opened.fileno()).st_size
    name = Path(opened.name)
    if opened.read(4) != b"PK\x03\x04" or size < END.size:
        raise _damaged(name)
    entries = _entries(opened, size)
    if entries is None:
        raise _damaged(name)
    if entries > RECORDS:
        raise Unreadable(f"it has {entries:,} records, more than {RECORDS:,}")
    opened.seek(0)
    with zipfile.ZipFile(opened) as archive:
        records = archive.infolist()
    if any(r.compress_type != zipfile.ZIP_STORED or r.file_size != r.compress_size or r.flag_bits & 1 for r in records):
        raise Unreadable("its records are compressed, as torch doesn't write them; not unpacked")
    if sum(r.file_size for r in records) > size or any(r.header_offset >= size for r in records):
        raise Unreadable("its records are larger than the file")
    names = [r.filename.partition("/")[2] for r in records]
    if "constants.pkl" in names:
        raise Unreadable("a TorchScript archive, which holds code; not a checkpoint")
    largest = min(PICKLE + PICKLE_EACH * len(records), PICKLE_MOST)
    for record, place in zip(records, names, strict=True):
        if place != "data.pkl":
            continue
        if record.file_size > largest:
            raise Unreadable(f"its list of contents has more than {largest:,} bytes")
        opened.seek(0)
        with zipfile.ZipFile(opened) as archive:
            try:
                contents = archive.read(record)
            except zipfile.BadZipFile as error:
                raise _damaged(Path(opened.name)) from error
        if b"bytearray" in contents:  # torch would make one of any size
            raise Unreadable("it holds Python objects, which are not run; only tensors and plain values are read")


def _entries(opened: BinaryIO, size: int) -> int | None:
    """How many records the zip's directory announces; None where the file doesn't end in one, as torch's do."""
    if size < END.size:
        return None
    opened.seek(size - END.size)
    signature, _, _, _, entries, length, _, comment = END.unpack(opened.read(END.size))
    if signature != b"PK\x05\x06" or comment:
        return None
    if length != 0xFFFFFFFF and length > DIRECTORY_EACH * (entries + 1):
        return None
    before = size - END.size - LOCATOR.size - END64.size
    if before > 0:
        opened.seek(before)
        numbers = END64.unpack(opened.read(END64.size))
        if LOCATOR.unpack(opened.read(LOCATOR.size))[0] == b"PK\x06\x07":
            if numbers[8] > DIRECTORY_EACH * (numbers[7] + 1):
                return None
            return max(int(entries) if entries != 0xFFFF else 0, int(numbers[7]))
    return int(entries)


def count_records(path: str | os.PathLike[str]) -> int:
    """How many records a checkpoint has: at least as many as tensors.

    Raises:
        Unreadable: it is no zip.
    """
    file = require_file(path)
    with file.open("rb") as opened:
        found = _entries(opened, file.stat().st_size)
    if found is None:
        raise _damaged(file)
    return min(found, RECORDS)


def check_crc(path: str | os.PathLike[str]) -> None:
    """Hold a checkpoint to the check sums of its zip, which torch doesn't look at.

    Raises:
        Unreadable: a record is not what was written.
    """
    file = require_file(path)
    try:
        with zipfile.ZipFile(file) as archive:
            wrong = archive.testzip()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _damaged(file) from error
    if wrong is not None:
        raise Unreadable(f"damaged: the check sum of its record {spell(wrong)} is wrong")


# -- safetensors ------------------------------------------------------------------------------------------


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        Unreadable: it is none, or cut off.
    """
    file = require_file(path)
    size = file.stat().st_size
    cut = f"can't be read; is it cut off? ({size:,} bytes)"
    try:
        with file.open("rb") as opened:
            start = opened.read(8)
        if len(start) < 8 or int.from_bytes(start, "little") > min(HEADER, size):
            raise Unreadable(cut)
        return load_file(file)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, MemoryError) as error:
        raise Unreadable(cut) from error


# -- tensors ----------------------------------------------------------------------------------------------

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


def check_tensor(name: str, tensor: Any) -> None:
    """Raise unless it is a plain tensor that holds what it says: dense, of real numbers, with a memory of its own.

    Raises:
        Unreadable: names it.
    """
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        raise Unreadable(f"{spell(name)} is no tensor but a {type(tensor).__name__}")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise Unreadable(f"{spell(name)} is not a plain tensor (sparse, quantised or without memory)")
    if tensor.dtype not in DTYPES:
        raise Unreadable(f"{spell(name)} is of {tensor.dtype}, which no model of flowdiff holds")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise Unreadable(f"{spell(name)} has more numbers than its memory holds")


def check_types(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise if tensors are of another type than those of the same names in a model: they would be rounded.

    Raises:
        Unreadable: names one.
    """
    for name, tensor in state.items():
        if name in expected and tensor.dtype != expected[name].dtype:
            raise Unreadable(f"{spell(name)} is of {tensor.dtype}, the model's is of {expected[name].dtype}")


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise if a number in it is NaN or infinite.

    Raises:
        Unreadable: names it.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return
    ends = tensor.aminmax()  # NaN, if one is in it; one pass where `isfinite` makes several
    if not (math.isfinite(ends.min) and math.isfinite(ends.max)):
        raise Unreadable(f"{spell(name)} has values that are not finite (NaN or inf)")
