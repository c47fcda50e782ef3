"""Nested calls against the markup that they stand for."""

from flaxformer_lab.report.markup import Markup, breakable, join, tag


def test_text_is_escaped_and_markup_is_not():
    inner = tag("b", "<i>", 3)
    assert inner == "<b>&lt;i&gt;3</b>" and isinstance(inner, Markup)
    assert tag("p", inner, None, ["x", ("&", inner)]) == f"<p>{inner}x&amp;{inner}</p>"
    assert tag("a", href='"><b>', class_="one two", aria_label="it's", hidden=True, title=None) == (
        '<a href="&quot;&gt;&lt;b&gt;" class="one two" aria-label="it&#x27;s" hidden></a>'
    )
    assert tag("br") == "<br>" and join(["a", None, 1.5]) == "a1.5"
    assert breakable("<a_b>") == "&lt;a_<wbr>b&gt;"
