"""What a search found, as one HTML page: pictures, scores, captions. It asks nothing of anybody."""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import PurePath
from string import Template
from typing import Any

EDGE = 480  # pixels of a thumbnail: two for each one that a card is wide

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
:root { --page: #f6f6f4; --card: #fff; --ink: #1c1c1a; --soft: #62625c; --line: #dcdcd6; }
@media (prefers-color-scheme: dark) {
  :root { --page: #161617; --card: #212123; --ink: #ececea; --soft: #a3a39c; --line: #38383a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: clamp(1rem, 3vw, 2.5rem); max-width: 80rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
header { display: flex; gap: 1.25rem; align-items: center; margin-bottom: 1.5rem; }
header img { flex: none; width: auto; max-width: 40%; height: auto; max-height: 13rem; border-radius: .5rem; }
h1 { margin: 0 0 .25rem; font-size: clamp(1.125rem, 3.5vw, 1.625rem); line-height: 1.25; font-weight: 650; }
p { margin: 0; }
.soft, summary { color: var(--soft); font-size: .875rem; }
ol { display: grid; gap: 1.25rem; margin: 0; padding: 0; list-style: none; }
ol.images { grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); }
ol.captions { gap: .75rem; max-width: 56rem; }
ol > li { display: flex; overflow: hidden; border: 1px solid var(--line); border-radius: .625rem;
  background: var(--card); }
.images > li { flex-direction: column; }
li > img, .none { flex: none; display: block; width: 100%; height: auto; aspect-ratio: 4 / 3;
  background: var(--line); object-fit: contain; }
.captions > li > img, .captions .none { align-self: stretch; width: clamp(5.5rem, 18vw, 8rem);
  aspect-ratio: 1; }
.none { display: grid; place-items: center; padding: .5rem; text-align: center; }
.text { flex: 1; min-width: 0; padding: .75rem 1rem; }
.captions .text { align-self: center; }
.score { display: flex; justify-content: space-between; margin-bottom: .25rem; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
ul { margin: .375rem 0 0; padding-left: 1.1em; font-size: .9375rem; }
details { margin-top: .375rem; }
summary { cursor: pointer; }
.file { margin-top: .375rem; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
</style>
</head>
<body>
<header>$asked<div><h1 dir="auto">$heading</h1><p class="soft">$facts</p></div></header>
<main><ol class="$finds">
$hits
</ol></main>
</body>
</html>
""")


def page(found: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The HTML of what `itmfeat.search` returned; `pictures` are JPEGs by file name, as far as there are any.

    All text is escaped, and the page's own policy forbids scripts and whatever is not inside it.
    """
    query, finds = str(found["query"]), str(found["finds"])
    asked = pictures.get(query) if finds == "captions" else None
    heading = PurePath(query).name if finds == "captions" else query
    facts = (
        f"{len(found['hits'])} best of {found['searched']:,} {finds}, {found['split']} split of "
        f"{found['dataset']}, by cosine · run {PurePath(found['run']).name}"
    )
    return _PAGE.substitute(
        title=escape(f"{heading} · itmfeat search"),
        asked=_shown(asked, "the picture that was asked with") if asked else "",
        heading=escape(heading),
        facts=escape(facts),
        finds=escape(finds),
        hits="\n".join(_hit(hit, pictures) for hit in found["hits"]),
    )


def _hit(hit: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """One hit as a list item: the picture, rank and score, the words, the file."""
    first, *rest = hit.get("captions") or [hit["caption"]]
    file = hit["image_file"]
    more = "".join(f'<li dir="auto">{escape(caption)}</li>' for caption in rest)
    many = f"{len(rest)} more caption{'s' if len(rest) > 1 else ''}"
    shown = _shown(pictures[file], first) if file in pictures else ""
    if pictures and not shown:
        shown = '<div class="none soft">not at hand</div>'
    return (
        f'<li>{shown}<div class="text">'
        f'<div class="score"><b>{hit["rank"]}</b><span>{hit["score"]:.3f}</span></div>'
        f'<p dir="auto">{escape(first)}</p>'
        + (f"<details><summary>{many}</summary><ul>{more}</ul></details>" if rest else "")
        + f'<p class="soft file" title="{escape(file)}">{escape(PurePath(file).name)}</p></div></li>'
    )


def _shown(jpeg: bytes, words: str) -> str:
    data = base64.b64encode(jpeg).decode()
    return f'<img alt="{escape(words)}" src="data:image/jpeg;base64,{data}">'
