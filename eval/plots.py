"""All figures of the project, as PNG bytes. matplotlib is imported only when a figure is drawn."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Two hues of the Okabe-Ito set, which colour-blind readers tell apart; lighter is MSM alone, darker MSM + AFT.
SPEC_HUES = (("#8fc1e3", "#0b62a4"), ("#f5b98a", "#c8500a"), ("#9ed8c3", "#00805e"), ("#e3b5d0", "#a8487f"))
PLAIN_HUES = {"baseline": "#cfcfcf", "aft": "#7d7d7d"}
OTHER_HUE = "#a9a9a9"
CHANCE = 0.5
INK = "#222222"
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # lines stop short of a value label
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 200,
}


class Bar(NamedTuple):
    """Mean over seeds, its SEM (None if unknown), and the rate of each seed."""

    mean: float
    sem: float | None = None
    seeds: tuple[float, ...] = ()


def arm_colors(arms: Sequence[dict]) -> list[str]:
    """A colour an arm: greys without a spec, one hue a spec, light for MSM alone and dark with AFT."""
    specs = list(dict.fromkeys(arm["spec"] for arm in arms if arm["spec"] is not None))
    colors = []
    for arm in arms:
        if arm["spec"] is None:
            colors.append(PLAIN_HUES.get(arm["name"], OTHER_HUE))
        else:
            light, dark = SPEC_HUES[specs.index(arm["spec"]) % len(SPEC_HUES)]
            colors.append(dark if arm["has_aft"] else light)
    return colors


def figure2(arms: Sequence[dict], panels: dict[str, dict[str, Sequence[Bar | None]]]) -> bytes:
    """Bars in the layout of the paper's Figure 2: a panel a source, a group an evaluation, a bar an arm.

    Error bars are +-1 SEM over seeds, dots the single seeds, the dashed line chance.

    Args: panels[title][evaluation] holds one bar an arm, in the order of `arms`; None leaves its place empty.
    """
    with _style():
        size = (0.9 + len(panels) * max(3.2, 0.74 + 0.38 * len(arms) * max(map(len, panels.values()))), 4.3)
        figure = _figure(size)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)
        colors = arm_colors(arms)
        for axis, (title, groups) in zip(axes[0], panels.items(), strict=True):
            _grouped_bars(axis, colors, groups)
            axis.set_title(title, fontsize=10, fontweight="bold", loc="left", pad=10)
        axes[0][0].set_ylabel("rate of value-aligned choice")
        for arm, color in zip(arms, colors, strict=True):
            axes[0][0].bar(0, 0, color=color, label=arm["label"])
        figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=(len(arms) + 1) // 2, frameon=False)
        last = axes[0][-1]
        last.text(1.01, CHANCE, "chance", transform=last.get_yaxis_transform(), va="center", color="#555555")
        figure.tight_layout(w_pad=2.5)
        return _png(figure)


def _grouped_bars(axis: "Axes", colors: Sequence[str], groups: dict[str, Sequence[Bar | None]]) -> None:
    spread = len(colors) + 1.2
    for group, bars in enumerate(groups.values()):
        for place, (bar, color) in enumerate(zip(bars, colors, strict=True)):
            x = group * spread + place
            if bar is None:
                axis.text(x, 0.012, "n/a", ha="center", va="bottom", fontsize=7, color="#777777")
                continue
            axis.bar(x, bar.mean, width=0.86, color=color, zorder=2)
            if bar.sem is not None:
                axis.errorbar(x, bar.mean, bar.sem, color=INK, linewidth=1, capsize=2.2, capthick=1, zorder=4)
            if len(bar.seeds) > 1:
                offsets = [x + 0.5 * (index / (len(bar.seeds) - 1) - 0.5) for index in range(len(bar.seeds))]
                axis.scatter(offsets, bar.seeds, s=7, color="white", edgecolor=INK, linewidth=0.5, zorder=3)
            top = max(bar.mean + (bar.sem or 0.0), *bar.seeds, 0.0)
            axis.text(x, top + 0.018, _rate(bar.mean), ha="center", va="bottom", fontsize=8, bbox=LABEL_BOX)
    axis.axhline(CHANCE, color="#555555", linestyle=(0, (4, 3)), linewidth=0.9, zorder=1)
    axis.set_xticks([group * spread + (len(colors) - 1) / 2 for group in range(len(groups))], list(groups))
    axis.set_xlim(-0.9, len(groups) * spread - 1.3)
    axis.set_ylim(0, 1.1)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".50", ".75", "1"])
    axis.yaxis.grid(True, color="#ececec", linewidth=0.8)
    axis.tick_params(axis="x", length=0, pad=6, labelsize=10)
    axis.tick_params(axis="y", length=0)
    axis.set_axisbelow(True)


def separating(arms: Sequence[dict], bars: Sequence[Bar | None], ends: tuple[str, str]) -> bytes:
    """The headline contrast: how far each arm leans to one side on pairs where the values disagree.

    Args: `bars` has one entry an arm (None: not measured); `ends` names what the rates 0 and 1 stand for.
    """
    with _style():
        figure = _figure((7.6, 1.5 + 0.42 * len(arms)))
        axis = figure.subplots()
        for row, (bar, color) in enumerate(zip(bars, arm_colors(arms), strict=True)):
            if bar is None:
                axis.text(CHANCE + 0.01, row, "not measured", va="center", fontsize=8, color="#777777")
                continue
            axis.barh(row, bar.mean - CHANCE, left=CHANCE, height=0.66, color=color, zorder=2)
            axis.vlines(bar.mean, row - 0.33, row + 0.33, color=color, linewidth=2, zorder=6)  # a rate of .5 has no bar
            if bar.sem is not None:
                axis.errorbar(bar.mean, row, xerr=bar.sem, color=INK, linewidth=1, capsize=2.5, zorder=4)
            if len(bar.seeds) > 1:
                offsets = [row + 0.4 * (index / (len(bar.seeds) - 1) - 0.5) for index in range(len(bar.seeds))]
                axis.scatter(bar.seeds, offsets, s=10, color="white", edgecolor=INK, linewidth=0.5, zorder=3)
            axis.text(1.05, row, _rate(bar.mean), va="center", fontsize=9)
        axis.axvline(CHANCE, color="#555555", linestyle=(0, (4, 3)), linewidth=0.9, zorder=5)
        axis.set_yticks(range(len(arms)), [arm["label"] for arm in arms])
        axis.set_ylim(len(arms) - 0.4, -0.6)
        axis.set_xlim(-0.02, 1.02)
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".50", ".75", "1"])
        axis.xaxis.grid(True, color="#ececec", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel(f"rate of choosing the {ends[1]} item")
        axis.set_title(f"\N{LEFTWARDS ARROW} {ends[0]}", loc="left", fontsize=9, color="#555555")
        axis.set_title(f"{ends[1]} \N{RIGHTWARDS ARROW}", loc="right", fontsize=9, color="#555555")
        return _png(figure)


def scores(
    arms: Sequence[dict],
    means: Sequence[Any],
    ends: tuple[float, float],
    label: str,
    paper: Sequence[float | None] = (),
) -> bytes:
    """One horizontal bar an arm, with its interval, the single seeds, and a diamond where the paper has it.

    Args: `means` have value, low, high and seeds, one an arm; `ends`: the least and the most that there can be;
    `paper`: one an arm, None where it has none.
    """
    least, most = ends
    with _style():
        figure = _figure((7.6, 1.3 + 0.42 * len(arms)))
        axis = figure.subplots()
        for row, (mean, color) in enumerate(zip(means, arm_colors(arms), strict=True)):
            if mean.value is None:
                axis.text(least, row, " not measured", va="center", fontsize=8, color="#777777")
                continue
            axis.barh(row, mean.value - least, left=least, height=0.66, color=color, zorder=2)
            if mean.low is not None:
                around = [[mean.value - max(least, mean.low)], [min(most, mean.high) - mean.value]]
                axis.errorbar(mean.value, row, xerr=around, color=INK, linewidth=1, capsize=2.5, zorder=4)
            if len(mean.seeds) > 1:
                offsets = [row + 0.4 * (index / (len(mean.seeds) - 1) - 0.5) for index in range(len(mean.seeds))]
                axis.scatter(mean.seeds, offsets, s=10, color="white", edgecolor=INK, linewidth=0.5, zorder=3)
            axis.text(most + 0.03 * (most - least), row, f"{mean.value:.2f}", va="center", fontsize=9)
        for row, value in enumerate(paper):
            if value is not None:
                axis.scatter([value], [row], s=34, marker="D", color="white", edgecolor=INK, linewidth=1, zorder=5)
        axis.set_yticks(range(len(arms)), [arm["label"] for arm in arms])
        axis.set_ylim(len(arms) - 0.4, -0.6)
        axis.set_xlim(least, most)
        axis.xaxis.grid(True, color="#ececec", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel(label)
        return _png(figure)


def heatmap(rows: Sequence[str], columns: Sequence[str], rates: Sequence[Sequence[float | None]]) -> bytes:
    """Rates by arm (rows) and domain (columns), purple below chance and green above; a cell without a rate is grey."""
    with _style():
        figure = _figure((2.6 + max(0.72 * len(columns), 2.5), 1.2 + 0.36 * len(rows)))
        axis = figure.subplots()
        grid = [[float("nan") if rate is None else rate for rate in row] for row in rates]
        image = axis.imshow(grid, cmap="PRGn", vmin=0, vmax=1, aspect="auto")
        for y, row in enumerate(rates):
            for x, rate in enumerate(row):
                dark = rate is not None and abs(rate - CHANCE) > 0.27
                text = "-" if rate is None else _rate(rate)
                axis.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else INK)
        axis.set_facecolor("#eeeeee")
        axis.set_xticks(range(len(columns)), columns)
        if max(map(len, columns)) > 9:
            axis.tick_params(axis="x", labelrotation=35)
            for label in axis.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(rows)), rows)
        axis.set_xticks([x - 0.5 for x in range(1, len(columns))], minor=True)
        axis.set_yticks([y - 0.5 for y in range(1, len(rows))], minor=True)
        axis.grid(which="minor", color="white", linewidth=1.5)
        axis.tick_params(which="both", length=0)
        axis.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axis, fraction=0.04, pad=0.03, ticks=[0, 0.5, 1])
        bar.ax.set_yticklabels(["0", ".50", "1"])
        bar.outline.set_visible(False)
        return _png(figure)


def _rate(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if value < 0.995 else "1.0"


def _style():
    import matplotlib

    return matplotlib.rc_context(STYLE)


def _figure(size: tuple[float, float]) -> "Figure":
    """A figure of `size` inches without pyplot, whose global state would outlive it."""
    from matplotlib.figure import Figure

    return Figure(figsize=size)


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    # Without the version stamp equal figures are equal bytes.
    figure.savefig(buffer, format="png", dpi=200, bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})
    return buffer.getvalue()
