"""A folder of pictures as people have them, made by a script, with the pixels that each file should give."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

W, H = 8, 6
Pixels = np.ndarray
CLASSES = ("1", "2", "10", "a2", "a10")
WHITE = 255
#: Before 13 Pillow can't read the YCbCr TIFF files that it writes.
READS_YCBCR = int(PIL.__version__.partition(".")[0]) >= 13


def base(seed: int = 0, shape: tuple[int, ...] = (H, W, 3)) -> Pixels:
    """Random bytes that are neither black nor white alone."""
    pixels = np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)
    pixels.flat[:2] = 0, 255
    return pixels


def gray(pixels: Pixels) -> Pixels:
    """(H, W) as (H, W, 3)."""
    return np.repeat(np.asarray(pixels)[..., None], 3, 2).astype(np.uint8)


def png(bits: int, kind: int, rows: Pixels, transparent: bytes = b"") -> bytes:
    """A PNG file of any depth, which Pillow writes only in part. `rows` are the packed bytes of each row."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, bits, kind, 0, 0, 0))]
    parts += [chunk(b"tRNS", transparent)] if transparent else []
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", body), chunk(b"IEND", b"")])


def tiff(bits: int, body: bytes, white_is_zero: bool = False, samples: int = 1) -> bytes:
    """An uncompressed little-endian TIFF file of gray; `samples`: 1 unsigned, 2 signed integers, 3 floats."""
    values = [(256, W), (257, H), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (273, 8)]
    values += [(277, 1), (278, H), (279, len(body)), (339, samples)]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(values)) + table + bytes(4)


def packed12(values: Pixels) -> bytes:
    """Pairs of values of 12 bits in three bytes."""
    a, b = values.reshape(-1, 2).T.astype(int)
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()


def saved(image: Image.Image, **options: object) -> Callable[[Path], None]:
    return lambda path: image.save(path, **options)


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def upright(orientation: int) -> tuple[Image.Image, dict[str, object], Pixels]:
    """A picture that lies as a camera of this orientation leaves it, what says so, and how it should be seen."""
    seen = base(20 + orientation)
    back = {3: 2, 6: 1, 8: 3}[orientation]  # quarter turns against the clock, from upright to as stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    return Image.fromarray(np.ascontiguousarray(np.rot90(seen, back))), {"exif": exif}, seen


def pictures() -> dict[str, tuple[Callable[[Path], object], Pixels]]:
    """By name: how each file is written, and its pixels (H, W, 3)."""
    rgb, one, deep = base(0), base(1, (H, W)), base(2, (H, W)).astype(np.uint16) * 257
    odd = np.random.RandomState(3).randint(0, 65536, (H, W)).astype(np.uint16)
    twelve = np.random.RandomState(4).randint(0, 4096, (H, W)).astype(np.uint16)
    twelve.flat[:2] = 0, 4095
    clear = np.where(base(5, (H, W)) < 100, 0, 255).astype(np.uint8)
    over_white = np.where(clear[..., None] == 0, WHITE, rgb)
    ycbcr = Image.fromarray(rgb).convert("YCbCr" if READS_YCBCR else "RGB")
    palette = Image.fromarray(rgb).quantize(16)
    of_palette = np.asarray(palette.convert("RGB"))
    index = np.asarray(palette)
    turned = {orientation: upright(orientation) for orientation in (3, 6, 8)}
    pages = [Image.fromarray(base(seed)) for seed in (30, 31)]
    few = [page.quantize(16) for page in pages]
    two = base(7, (H, W)) % 4
    rgb16 = np.random.RandomState(8).randint(0, 65536, (H, W, 3)).astype(">u2")
    flat = np.full((H, W, 3), (200, 100, 50), np.uint8)
    cmyk = Image.fromarray(np.dstack([255 - rgb, np.zeros((H, W), np.uint8)]), "CMYK")
    image, mono = Image.fromarray(rgb), Image.fromarray(one)
    return {
        "rgb.png": (saved(image), rgb),
        "gray.png": (saved(mono), gray(one)),
        "SHOUTED.PNG": (saved(image, format="PNG"), rgb),
        "misnamed.jpg": (saved(image, format="PNG"), rgb),
        "picture.webp": (saved(image, lossless=True), rgb),
        "picture.bmp": (saved(image), rgb),
        "picture.ppm": (saved(image), rgb),
        "picture.tga": (saved(image), rgb),
        "picture.jp2": (saved(image), rgb),
        "picture.qoi": (saved(image), rgb),
        "picture.pcx": (saved(image), rgb),
        "picture.sgi": (saved(image), rgb),
        "picture.dds": (saved(image), rgb),
        "flat.jpg": (saved(Image.fromarray(flat), quality=100, subsampling=0), flat),
        "bilevel.png": (saved(Image.fromarray(one > 99)), gray((one > 99) * 255)),
        "two_bits.png": (written(png(2, 0, packed(two))), gray(two * 85)),
        "two_bits_clear.png": (written(png(2, 0, packed(two), b"\0\1")), gray(np.where(two == 1, WHITE, two * 85))),
        "sixteen.png": (saved(Image.fromarray(deep)), gray(deep // 257)),
        "odd.png": (saved(Image.fromarray(odd)), gray(np.rint(odd / 257))),
        "sixteen_clear.png": (
            written(png(16, 0, deep.astype(">u2"), struct.pack(">H", int(deep[2, 2])))),
            gray(np.where(deep == deep[2, 2], WHITE, deep // 257)),
        ),
        "sixteen.tif": (saved(Image.fromarray(deep)), gray(deep // 257)),
        "big_endian.tif": (
            saved(Image.frombytes("I;16B", (W, H), deep.astype(">u2").tobytes())),
            gray(deep // 257),
        ),
        "white_is_zero.tif": (written(tiff(16, deep.tobytes(), white_is_zero=True)), gray(255 - deep // 257)),
        "twelve.tif": (written(tiff(12, packed12(twelve))), gray(np.rint(twelve * 255.0 / 4095))),
        "twelve.pgm": (
            written(b"P5 %d %d 4095\n" % (W, H) + twelve.astype(">u2").tobytes()),
            gray(np.rint(np.rint(twelve * 65535.0 / 4095) / 257)),
        ),
        "bytes_in_32.tif": (saved(Image.fromarray(one.astype(np.int32))), gray(one)),
        "sixteen_in_32.tif": (saved(Image.fromarray(deep.astype(np.int32))), gray(deep // 257)),
        "all_32.tif": (written(tiff(32, (one.astype(np.uint32) * 0x01010101).tobytes())), gray(one)),
        "float.tif": (saved(Image.fromarray((one / 255).astype(np.float32))), gray(one)),
        "float.pfm": (saved(Image.fromarray((one / 255).astype(np.float32))), gray(one)),
        "colour_16.png": (written(png(16, 2, rgb16.reshape(H, -1))), (rgb16 >> 8).astype(np.uint8)),
        "rgba.png": (saved(Image.fromarray(np.dstack([rgb, clear]))), over_white),
        "rgba.webp": (saved(Image.fromarray(np.dstack([rgb, clear])), lossless=True, exact=True), over_white),
        "la.png": (
            saved(Image.merge("LA", (mono, Image.fromarray(clear)))),
            gray(np.where(clear == 0, WHITE, one)),
        ),
        "half.png": (
            saved(Image.fromarray(np.dstack([np.zeros_like(rgb), np.full((H, W), 51, np.uint8)]))),
            np.full((H, W, 3), 204, np.uint8),
        ),
        "key.png": (
            saved(image, transparency=tuple(rgb[1, 1].tolist())),
            np.where((rgb == rgb[1, 1]).all(-1, keepdims=True), WHITE, rgb),
        ),
        "palette.png": (saved(palette), of_palette),
        "palette_clear.png": (saved(palette, transparency=3), np.where(index[..., None] == 3, WHITE, of_palette)),
        "palette_clear.gif": (saved(palette, transparency=3), np.where(index[..., None] == 3, WHITE, of_palette)),
        "cmyk.tif": (saved(cmyk), rgb),
        "ycbcr.tif": (saved(ycbcr), np.asarray(ycbcr.convert("RGB"))),
        "lab.tif": (saved(Image.new("LAB", (W, H), (255, 128, 128))), np.full((H, W, 3), 255, np.uint8)),
        "turned.png": (saved(turned[6][0], **turned[6][1]), turned[6][2]),
        "turned.webp": (saved(turned[8][0], lossless=True, **turned[8][1]), turned[8][2]),
        "turned.tif": (saved(turned[3][0], **turned[3][1]), turned[3][2]),
        "animated.gif": (
            saved(few[0], save_all=True, append_images=few[1:]),
            np.asarray(few[0].convert("RGB")),
        ),
        "animated.webp": (saved(pages[0], save_all=True, append_images=pages[1:], lossless=True), base(30)),
        "animated.apng": (saved(pages[0], format="PNG", save_all=True, append_images=pages[1:]), base(30)),
        "pages.tiff": (saved(pages[0], save_all=True, append_images=pages[1:]), base(30)),
    }


def packed(values: Pixels) -> Pixels:
    """Four values of two bits in a byte."""
    return (values.reshape(H, -1, 4) @ np.array([64, 16, 4, 1])).astype(np.uint8)


def make(root: Path) -> list[tuple[Path, int, Pixels]]:
    """Write the pictures into the folders of five classes, and beside them what is none.

    Returns:
        Of each picture its file, its class's number and its pixels (H, W, 3).
    """
    found = []
    for i, (name, (write, pixels)) in enumerate(pictures().items()):
        label = i % len(CLASSES)
        folder = root / CLASSES[label] / ("deeper/still" if i % 7 == 3 else "")
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / name)
        assert pixels.shape == (H, W, 3), name
        found.append((folder / name, label, pixels))
    stray = Image.new("RGB", (5, 5), (255, 0, 255))
    for hidden in (".ipynb_checkpoints", "__MACOSX/2", ".git", "10/.thumbnails", "a2/@eaDir"):
        (root / hidden).mkdir(parents=True)
        stray.save(root / hidden / "stray.png")
    for junk in (".DS_Store", "1/._rgb.png", "2/Thumbs.db", "10/.hidden.png", "a10/desktop.ini"):
        (root / junk).write_bytes(b"\0\5\26\7junk")
    for kind in ("labels.csv", "1/notes.txt", "2/notes.TXT", "a2/IMG_0001.heic", "10/readme"):
        (root / kind).write_text("no picture")
    (root / "drafts").mkdir()
    (root / "drafts" / "plan.pdf").write_bytes(b"%PDF-1.4")
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "2" / "up").symlink_to("..", target_is_directory=True)
    (root / "a2" / "self").symlink_to(root / "a2", target_is_directory=True)
    return found
