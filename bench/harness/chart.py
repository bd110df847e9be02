"""The chart: seconds to READY as horizontal bars, one group per image, as a hand-written SVG that needs no fonts or scripts."""
from html import escape

from harness.network import rate_text
from harness.report import delay_text, link_seconds, rounds, summarize

WIDTH, LEFT, RIGHT = 860, 190, 150  # the bars lie between the margins
BAR, GAP, GROUP, TOP, BOTTOM = 20, 6, 44, 64, 64
COLORS = {"containerd": "#9aa5b1", "floe-first": "#8ecae6", "floe-index": "#2a9fd6", "floe-profile": "#0b5d8a"}
OTHER = "#c8b6a6"
INK, FAINT = "#1f2933", "#7b8794"


def svg(result):
    """Returns the chart of a result."""
    summary = summarize(result)
    longest = max([row["seconds"].high for systems in summary.values() for row in systems.values()] +
                  [link_seconds(image["size"], result["rate"]) for image in result["images"].values()], default=1.0)
    step = _step(longest)
    scale = (WIDTH - LEFT - RIGHT) / longest
    body, y = [], TOP
    for image, systems in summary.items():
        top, labels = y + 22, []
        body.append(_text(16, y + 12, f"{image}, {result['images'][image]['size'] / 1e6:.0f} MB compressed", weight="600"))
        y = top
        for system, row in systems.items():
            body += _bar(y, COLORS.get(system, OTHER), row["seconds"], scale)
            labels += _labels(y, result["systems"][system], row, scale)
            y += BAR + GAP
        limit = LEFT + link_seconds(result["images"][image]["size"], result["rate"]) * scale
        body.append(f'<line x1="{limit:.1f}" x2="{limit:.1f}" y1="{top - 4}" y2="{y - GAP + 4}" stroke="#c2410c" '
                    f'stroke-width="1.5" stroke-dasharray="4 3"/>')
        body += labels  # last, so that nothing is drawn over them
        y += GROUP - 22
    axis = y - GROUP + 30
    ticks = []
    for index in range(int(longest / step + 1e-9) + 1):
        x = LEFT + index * step * scale
        ticks.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP + 14}" y2="{axis}" stroke="#e4e7eb"/>')
        ticks.append(_text(x, axis + 16, f"{index * step:g} s", color=FAINT, anchor="middle", size=11))
    height = axis + BOTTOM
    title = f"From nothing to ready over {rate_text(result['rate'])}{delay_text(result)}"
    foot = [f"Median of {rounds(result)} cold starts, whiskers: {_interval(summary)}. "
            "Dashed: the link alone, for all layers.",
            f"Linux {result['machine']['kernel']}, {result['machine']['cpus']} CPUs, {result['date'][:10]}. Shorter is better."]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" role="img" '
        f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height:g}" rx="8" fill="#ffffff"/>',
        _text(16, 34, title, size=18, weight="600"),
        *ticks, *body,
        *[_text(16, axis + 38 + 15 * line, words, color=FAINT, size=11) for line, words in enumerate(foot)],
        "</svg>", ""])


def _bar(y, color, seconds, scale):
    """Returns a bar and the whiskers of its interval."""
    length = max(seconds.median * scale, 1.0)
    low, high, middle = LEFT + seconds.low * scale, LEFT + seconds.high * scale, y + BAR / 2
    return [
        f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{color}"/>',
        f'<path d="M{low:.1f} {middle - 4}v8M{low:.1f} {middle}H{high:.1f}M{high:.1f} {middle - 4}v8" stroke="{INK}" fill="none"/>',
    ]


def _labels(y, title, row, scale):
    """Returns the words on either side of a bar."""
    seconds, share = row["seconds"], row["share"]
    words = f"{seconds.median:.2f} s" + (f"  (1/{1 / share.median:.1f})" if share else "")
    right = LEFT + max(seconds.median, seconds.high) * scale
    return [_text(LEFT - 8, y + BAR / 2 + 4, title, anchor="end", size=12), _text(right + 6, y + BAR / 2 + 4, words, size=12)]


def _text(x, y, words, color=INK, anchor="start", size=13, weight="400"):
    # The white rim keeps words readable where a line runs behind them.
    return (f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
            f'stroke="#ffffff" stroke-width="4" paint-order="stroke">{escape(words)}</text>')


def _step(longest):
    """Returns a round distance between ticks that makes four to ten of them."""
    step = 0.001
    while True:
        for factor in (1, 2, 5):
            if longest / (step * factor) <= 10:
                return step * factor
        step *= 10


def _interval(summary):
    """Returns what the whiskers span, in words."""
    coverages = sorted({row["seconds"].coverage for systems in summary.values() for row in systems.values()})
    return " or ".join(f"{100 * share:.1f} %" for share in coverages) + " interval of the median"
