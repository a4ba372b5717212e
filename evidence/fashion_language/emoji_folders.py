"""Emoji by two artists as folders of images, one a kind: emoji/<kind>/<artist>-<code>.png, 64 x 64.

`npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0` fetches what it reads (136 MB; MIT, the
pictures Apache-2.0 and CC-BY-4.0).
"""

import json
import tarfile
from collections import Counter
from pathlib import Path

FEWEST = 40
"""Images below which a kind is left out."""


def members(artist: str) -> dict[str, bytes]:
    """The list of emoji and the pictures of 64 pixels in one package, by their names in it."""
    wanted = ("package/emoji.json", f"package/img/{artist}/64/")
    with tarfile.open(f"emoji-datasource-{artist}-16.0.0.tgz") as archive:
        files = ((m.name, archive.extractfile(m)) for m in archive if m.name.startswith(wanted))
        return {name: file.read() for name, file in files if file is not None}


def main() -> None:
    images: dict[str, tuple[str, bytes]] = {}
    for artist in ("google", "twitter"):
        files = members(artist)
        for emoji in json.loads(files["package/emoji.json"]):
            for form in (emoji, *emoji.get("skin_variations", {}).values()):
                content = files.get(f"package/img/{artist}/64/{form['image']}")
                if content is not None:
                    images[f"{artist}-{form['image']}"] = (emoji["subcategory"], content)
    sizes = Counter(kind for kind, _ in images.values())
    for name, (kind, content) in images.items():
        if sizes[kind] >= FEWEST:
            path = Path("emoji", kind, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


if __name__ == "__main__":
    main()
