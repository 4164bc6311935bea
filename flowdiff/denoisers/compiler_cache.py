"""What torch.compile keeps on disk: graphs and the libraries made of them, which a second start of a model loads.

They lie in TORCHINDUCTOR_CACHE_DIR, by default a folder of the user's in the folder for temporary files. Graphs are
written whole or not at all; libraries are written by a compiler, and one that is killed leaves a file cut short, which
no later run could load. In the format of such files (ELF, System V ABI, figure 4-3) the header says where the table of
sections lies, which is what a linker writes last: a file that ends before it is broken.
"""

import os
import struct
from pathlib import Path

import filelock

HEADER = 64  # bytes
ORDER = {1: "<", 2: ">"}  # e_ident[5]: little-endian, big-endian
TABLE = {
    1: ("I", 32, 46),
    2: ("Q", 40, 58),
}  # e_ident[4]: e_shoff's type, its place, e_shentsize's


def remove_broken() -> list[Path]:
    """Remove the libraries that are cut short, and the parts of libraries; torch.compile makes them anew.

    One that another process is writing now is left alone.

    Returns:
        The files that were removed.
    """
    from torch._inductor.codecache import get_lock_dir  # half a second, and only where something is compiled
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder, locks = Path(cache_dir()), Path(get_lock_dir())
    broken = [path for pattern in ("*.so", "*.o") for path in folder.glob(f"*/{pattern}") if is_cut_short(path)]
    return [path for path in broken if _remove(path, locks / f"{path.name.partition('.')[0]}.lock")]


def is_cut_short(path: Path) -> bool:
    """Whether a library ends before its table of sections; False of one that is gone, or of another format."""
    try:
        with path.open("rb") as file:
            header, size = file.read(HEADER), os.fstat(file.fileno()).st_size
    except OSError:
        return False
    if not b"\x7fELF".startswith(header[:4]):
        return False
    if len(header) < HEADER or header[4] not in TABLE or header[5] not in ORDER:
        return True
    order, (kind, place, sizes) = ORDER[header[5]], TABLE[header[4]]
    (start,) = struct.unpack_from(order + kind, header, place)
    entry, count = struct.unpack_from(order + "HH", header, sizes)
    return size < max(HEADER, start + entry * count)


def _remove(path: Path, lock: Path) -> bool:
    """Whether a broken file could be removed: not while the lock is held under which such files are written."""
    try:
        with filelock.FileLock(lock, timeout=0):
            if not is_cut_short(path):  # written in between
                return False
            path.unlink()
    except (OSError, filelock.Timeout):
        return False
    return True
