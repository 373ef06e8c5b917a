"""The table of the results: one line a figure, with the aims beside those that have one."""

# (part, what, figure) -> the aim on an H200.
AIMS = {
    ("bert", "step", "mfu"): 0.60,
    ("t5", "step", "mfu"): 0.55,
    ("modernbert", "step", "mfu"): 0.50,
    ("inference", "fixed", "mfu"): 0.60,
    ("inference", "mixed", "of_fixed"): 0.95,
}
# Quotients of two figures: name, aim, (part, what, figure) above and below.
RATIOS = (
    ("float8 over bfloat16, BERT large", 1.25, ("bert-float8", "step", "per_s"), ("bert", "step", "per_s")),
    (
        "ours over transformers compiled, BERT large",
        None,
        ("bert", "step", "per_s"),
        ("transformers-bert", "step", "per_s"),
    ),
    ("ours over transformers compiled, T5 large", None, ("t5", "step", "per_s"), ("transformers-t5", "step", "per_s")),
    (
        "greedy over transformers eager",
        40.0,
        ("decoding", "greedy", "tokens_per_s"),
        ("transformers-decoding", "greedy eager", "tokens_per_s"),
    ),
    (
        "greedy over transformers static compiled",
        5.0,
        ("decoding", "greedy", "tokens_per_s"),
        ("transformers-decoding", "greedy static", "tokens_per_s"),
    ),
    (
        "four beams over transformers eager",
        None,
        ("decoding", "beams 4", "tokens_per_s"),
        ("transformers-decoding", "beams 4 eager", "tokens_per_s"),
    ),
)


def table(results: list[dict], ends: dict[str, str]) -> str:
    """Returns the results as Markdown."""
    found = {(line["part"], line["what"], name): value for line in results for name, value in line.items()}
    lines = ["| part | what | figures |", "|---|---|---|"]
    for result in results:
        figures = {name: value for name, value in result.items() if name not in ("part", "what")}
        shown = ", ".join(
            f"{name} {number(value)}" + aim(AIMS.get((result["part"], result["what"], name)))
            for name, value in figures.items()
        )
        lines.append(f"| {result['part']} | {result['what']} | {shown} |")
    for name, wanted, above, below in RATIOS:
        if found.get(above) and found.get(below):
            lines.append(f"| ratio | {name} | {found[above] / found[below]:.2f}{aim(wanted)} |")
    lines += [f"| {name} | | **{end}** |" for name, end in ends.items() if end != "done"]
    return "\n".join(lines) + "\n"


def aim(wanted: float | None) -> str:
    return "" if wanted is None else f" (aim {wanted:g})"


def number(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
