// Pages mark their formulas when they are built, and only what is marked is typeset; a notebook's cells keep dollars.
window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"], ["$", "$"]], displayMath: [["\\[", "\\]"], ["$$", "$$"]], processEscapes: true },
  options: { ignoreHtmlClass: "md-container", processHtmlClass: "arithmatex|jp-RenderedMarkdown" },
};
