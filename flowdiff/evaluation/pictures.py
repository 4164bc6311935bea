"""Pictures: grids of images, points over a density, and the denoising of one batch at several noise levels.

Everything is returned as a uint8 tensor (C, H, W), so that the same picture goes to a PNG and to TensorBoard.
"""

from collections.abc import Callable, Sequence
from math import ceil, sqrt
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from flowdiff.errors import FlowdiffError
from flowdiff.evaluation.text import to_label
from flowdiff.files import write_whole


def image_grid(images: Tensor, columns: int | None = None, min_side: int = 640) -> Tensor:
    """Images side by side, small ones enlarged by whole pixels.

    Args:
        images: (N, C, H, W) uint8, C = 1 or 3.
        columns: images in a row; None: as near to a square as can be, 10 for more than 50 images.
        min_side: the grid is enlarged until its longer side has about this many pixels.

    Returns:
        (3, H', W') uint8.
    """
    n = len(images)
    columns = columns or (10 if n > 50 else ceil(sqrt(n)))
    columns = min(columns, n)
    longest = max(columns * images.shape[3], ceil(n / columns) * images.shape[2])
    scale = max(1, round(min_side / longest))
    big = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return set_side_by_side(big, columns, gap=max(2, scale // 2))


def set_side_by_side(images: Tensor, columns: int, gap: int, grey: int = 96) -> Tensor:
    """Images in rows, with grey between and around them; one alone without.

    torchvision's `make_grid` does the same, and its import takes longer than that of the rest of this package.

    Args:
        images: (N, C, H, W) uint8, C = 1 or 3.
        columns: images in a row.
        gap: pixels between them.
        grey: level of what is no image.

    Returns:
        (3, H', W') uint8.
    """
    n, rows = len(images), ceil(len(images) / columns)
    images = images.expand(-1, 3, -1, -1)
    if n == 1:
        return images[0]
    cells = F.pad(images, (gap, 0, gap, 0), value=grey)
    cells = torch.cat([cells, torch.full_like(cells[:1], grey).expand(rows * columns - n, -1, -1, -1)])
    grid = cells.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    return F.pad(grid, (0, gap, 0, gap), value=grey)


def denoising_strip(
    denoise: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x0: Tensor,
    labels: Tensor | None,
    sigmas: Sequence[float],
    noise: Tensor,
    to_uint8: Callable[[Tensor], Tensor],
    min_side: int = 640,
) -> Tensor:
    """One row a sample: x0, then x0 + sigma·noise and D beside it for each sigma, which stands above them.

    Args:
        denoise: D(x, sigma (B,), labels), (B, C, H, W) to (B, C, H, W).
        x0: (B, C, H, W) images in [-1, 1].
        labels: (B,) or None.
        sigmas: the noise levels.
        noise: (B, C, H, W) standard normals, the same at every sigma.
        to_uint8: from model space to uint8 images of the same shape.

    Returns:
        (3, H', W') uint8.
    """
    columns = [x0]
    for sigma in sigmas:
        x = x0 + sigma * noise
        columns += [x, denoise(x, x.new_full((len(x),), sigma), labels)]
    rows = torch.stack(columns, 1).flatten(0, 1)
    grid = image_grid(to_uint8(rows.cpu()), columns=len(columns), min_side=min_side)
    pairs = [(f"σ = {sigma:g}", 2 * (i + 1) / len(columns)) for i, sigma in enumerate(sigmas)]
    return write_above(grid, [("x0", 0.5 / len(columns)), *pairs], least=1.8 / len(columns))


def write_above(picture: Tensor, words: Sequence[tuple[str, float]], least: float, grey: int = 96) -> Tensor:
    """A line of words above a picture.

    Args:
        picture: (3, H, W) uint8.
        words: each with the place of its middle, from 0 (left) to 1 (right).
        least: the share of the picture's width that each word may take; the letters are as large as that allows.
        grey: level of what is behind the words.

    Returns:
        (3, H', W) uint8.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    width, file = picture.shape[2], Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    font = ImageFont.truetype(file, 100)
    widest = max(font.getlength(word) for word, _ in words)
    size = max(6, min(16, int(100 * least * width / widest)))
    line = Image.new("RGB", (width, size + size // 2), (grey,) * 3)
    font, drawn = font.font_variant(size=size), ImageDraw.Draw(line)
    for word, place in words:
        drawn.text((place * width, line.height / 2), word, fill="white", font=font, anchor="mm")
    pixels = torch.frombuffer(bytearray(line.tobytes()), dtype=torch.uint8).reshape(line.height, width, 3)
    return torch.cat([pixels.permute(2, 0, 1), picture], 1)


def density_scatter(
    points: Tensor,
    log_prob: Callable[[Tensor], Tensor] | None,
    title: str = "",
    labels: Tensor | None = None,
    resolution: int = 160,
) -> Tensor:
    """Points in the plane over the density as a heat map of log p.

    Args:
        points: (N, 2).
        log_prob: (M, 2) to (M,), in nats; None: no heat map.
        title: above the picture.
        labels: (N,) classes, shown as colours; None: white points.
        resolution: cells of the heat map along each side.

    Returns:
        (3, H, W) uint8.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = points.detach().float().cpu()
    points = points[points.isfinite().all(1)]
    if not len(points):
        raise FlowdiffError("no finite point to draw")
    low, high = points.quantile(0.002, dim=0), points.quantile(0.998, dim=0)
    centre, half = (low + high) / 2, 0.62 * float((high - low).max()) + 1e-3
    ends = [float(v) for i in (0, 1) for v in (centre[i] - half, centre[i] + half)]
    figure = Figure(figsize=(6.4, 5.6), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    if log_prob is not None:
        xs = torch.linspace(ends[0], ends[1], resolution)
        ys = torch.linspace(ends[2], ends[3], resolution)
        plane = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 2)
        density = log_prob(plane).detach().cpu().float().reshape(resolution, resolution)
        top = float(density[density.isfinite()].max()) if bool(density.isfinite().any()) else 0.0
        shown = axes.imshow(
            density.nan_to_num(neginf=-1e30).numpy(),
            origin="lower",
            extent=(ends[0], ends[1], ends[2], ends[3]),
            vmin=top - 9.0,
            vmax=top,
            cmap="magma",
            interpolation="bilinear",
        )
        figure.colorbar(shown, ax=axes, label="log p (nats)")
    x, y = points.T.numpy()
    colours = None if labels is None else labels[: len(points)].cpu().numpy()
    if colours is not None and len(colours) == len(points):
        axes.scatter(x, y, s=5, c=colours, cmap="tab10", linewidths=0, alpha=0.8)
    else:
        axes.scatter(x, y, s=4, color="cyan", linewidths=0, alpha=0.7)
    axes.set(xlim=ends[:2], ylim=ends[2:], title=to_label(title), aspect="equal")
    canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = canvas.get_width_height()
    return pixels.reshape(height, width, 4)[..., :3].permute(2, 0, 1).contiguous()


def save_png(image: Tensor, path: Path) -> None:
    """Write a (C, H, W) or (H, W) uint8 image whole or not at all.

    Raises:
        FlowdiffError: it can't be written (a full disk, no permission).
    """
    from PIL import Image

    array = image.cpu().numpy()
    if array.ndim == 3:
        array = array[0] if len(array) == 1 else array.transpose(1, 2, 0)
    write_whole(path, lambda file: Image.fromarray(array).save(file, format="PNG"))
