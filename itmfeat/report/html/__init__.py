"""The HTML report: one self-contained page, and the figure of a paper.

tables --measures--> records --charts--> Vega-Lite
tables, run folders, cache --hits--> lists --gallery, thumbnails--> what fits the budget
all of it, page.html, page.css, page.js --page--> text
"""

from itmfeat.report.html.charts import figure
from itmfeat.report.html.page import page

__all__ = ["figure", "page"]
