"""What a search found, as one HTML page: pictures, scores, captions. It asks nothing of anybody."""

import base64
from collections.abc import Mapping
from html import escape
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
:root { --page: #f6f6f4; --card: #fff; --ink: #1c1c1a; --soft: #62625c; --line: #dcdcd6; --bar: #2f6fb3; }
@media (prefers-color-scheme: dark) {
  :root { --page: #161617; --card: #212123; --ink: #ececea; --soft: #a3a39c; --line: #38383a;
    --bar: #6aa7e6; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: clamp(1rem, 3vw, 2.5rem); max-width: 80rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
header { display: flex; gap: 1.25rem; align-items: center; margin-bottom: 1.75rem; }
header img { flex: none; width: clamp(6rem, 22vw, 14rem); height: auto; max-height: 14rem;
  object-fit: contain; border-radius: .5rem; }
h1 { margin: 0 0 .25rem; font-size: clamp(1.25rem, 3.5vw, 1.75rem); line-height: 1.25; font-weight: 650; }
p { margin: 0; }
.soft { color: var(--soft); font-size: .875rem; }
ol { display: grid; gap: 1.25rem; margin: 0; padding: 0; list-style: none; }
ol.images { grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); }
ol.captions { gap: .75rem; }
li { display: flex; overflow: hidden; border: 1px solid var(--line); border-radius: .625rem;
  background: var(--card); }
.images li { flex-direction: column; }
li img, .none { flex: none; display: block; background: var(--line); object-fit: cover; }
.images li > img, .images .none { width: 100%; height: auto; aspect-ratio: 4 / 3; }
.captions li > img, .captions .none { width: clamp(5.5rem, 20vw, 9rem); height: auto; min-height: 100%;
  aspect-ratio: 4 / 3; }
.none { display: grid; place-items: center; padding: .5rem; text-align: center; color: var(--soft);
  font-size: .8125rem; }
.text { flex: 1; min-width: 0; padding: .75rem 1rem 1rem; }
.captions .text { align-self: center; padding: .75rem 1rem; }
.score { display: flex; gap: .625rem; align-items: center; margin-bottom: .375rem; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
.score b { min-width: 1.5em; }
.score meter { flex: 1; min-width: 2rem; max-width: 10rem; height: .375rem; border: 0; border-radius: 1rem;
  background: var(--line); }
meter::-webkit-meter-bar { height: .375rem; border: 0; border-radius: 1rem; background: var(--line); }
meter::-webkit-meter-optimum-value { border-radius: 1rem; background: var(--bar); }
meter::-moz-meter-bar { border-radius: 1rem; background: var(--bar); }
ul { margin: .375rem 0 0; padding-left: 1.1em; }
details { margin-top: .375rem; }
summary { cursor: pointer; color: var(--soft); font-size: .875rem; }
.file { margin-top: .5rem; }
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
    most = max((hit["score"] for hit in found["hits"]), default=1.0)
    facts = (
        f"{len(found['hits'])} best of {found['searched']:,} {finds} · {found['split']} split of "
        f"{found['dataset']} · {found['run']}"
    )
    asked = query in pictures and finds == "captions"
    return _PAGE.substitute(
        title=escape(f"{query} · itmfeat search"),
        asked=_shown(pictures[query], "the picture that was asked with") if asked else "",
        heading=escape(query),
        facts=escape(facts),
        finds=escape(finds),
        hits="\n".join(_hit(hit, most, pictures.get(hit["image_file"])) for hit in found["hits"]),
    )


def _hit(hit: Mapping[str, Any], most: float, picture: bytes | None) -> str:
    """One hit as a list item: the picture, the score, the words."""
    captions = list(hit.get("captions", ())) or [hit.get("caption", "")]
    first, rest = captions[0], captions[1:]
    name = escape(hit["image_file"])
    more = "".join(f'<li dir="auto">{escape(caption)}</li>' for caption in rest)
    shown = _shown(picture, first) if picture else f'<div class="none">{name}</div>'
    return (
        f'<li>{shown}<div class="text"><div class="score"><b>{hit["rank"]}</b>'
        f'<meter min="0" max="{max(most, 1e-6):.6f}" value="{max(hit["score"], 0):.6f}" '
        f'aria-label="score"></meter><span>{hit["score"]:.3f}</span></div>'
        f'<p dir="auto">{escape(first)}</p>'
        + (f"<details><summary>{len(rest)} more captions</summary><ul>{more}</ul></details>" if rest else "")
        + f'<p class="soft file">{name}</p></div></li>'
    )


def _shown(jpeg: bytes, words: str) -> str:
    data = base64.b64encode(jpeg).decode()
    return f'<img alt="{escape(words)}" src="data:image/jpeg;base64,{data}">'
