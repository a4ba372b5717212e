"""What a reader and a browser would make of a page: tags in balance, text, addresses, items of lists."""

from html.parser import HTMLParser

_VOID = {"meta", "br", "path", "use", "rect", "img"}


class Page(HTMLParser):
    """A page, read; a tag that is not closed in its place is an error."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.addresses, self.texts, self.items = [], [], [], [], []
        self.feed(html)
        assert self.open == []
        self.text = " ".join(self.texts)

    def styles(self):
        """The class of each list item that has one, in order."""
        return [style for style, _ in self.items if style]

    def of_style(self, style):
        """The texts of the list items of one class."""
        return [text for own, text in self.items if own == style]

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag == "li":
            self.items.append((dict(attrs).get("class"), ""))

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)
            if "li" in self.open:
                style, text = self.items[-1]
                self.items[-1] = (style, text + data)
