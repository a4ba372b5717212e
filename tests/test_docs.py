"""The docs say what the code does: the table of families is the one in the code."""

from pathlib import Path

from lmgraft.block.family import FAMILIES

ROOT = Path(__file__).parent.parent


def families_table() -> str:
    """`python tests/test_docs.py` prints it, to be pasted between the marks in docs/families.md."""
    lines = ["| `model_type` | read from | proved against transformers' own layer, with |", "|---|---|---|"]
    for name in FAMILIES.names():
        family = FAMILIES.load(name)
        styles = {"hf": "safetensors, .bin", "gguf": "GGUF", "meta": "consolidated.pth"}
        read = ", ".join(styles[style] for style in family.config_from)
        lines.append(f"| `{name}` | {read} | {family.verified} |")
    return "\n".join(lines)


def test_the_table_of_families_is_the_one_in_the_code() -> None:
    text = (ROOT / "docs" / "families.md").read_text()
    begin, end = "<!-- families: begin -->\n", "\n<!-- families: end -->"
    assert text[text.index(begin) + len(begin) : text.index(end)] == families_table()


def test_the_quickstart_table_in_the_readme_is_filled() -> None:
    text = (ROOT / "README.md").read_text()
    table = text[text.index("<!-- quickstart table: begin -->") : text.index("<!-- quickstart table: end -->")]
    assert all(f"| {arm} |" in table for arm in ("plain", "llm", "random_frozen"))


if __name__ == "__main__":
    import sys

    sys.stdout.write(families_table() + "\n")
