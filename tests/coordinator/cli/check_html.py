#!/usr/bin/env python3
"""Reads a report (file argument): all elements close in order, nothing runs or is loaded, every drawing is XML without
odd numbers."""

import re
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "hr"}
REFERENCES = {"src", "href", "action", "data", "srcset", "poster", "xlink:href"}


class Checker(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.faults, self.counts = [], [], {}

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag in ("script", "iframe", "object", "embed", "img", "link", "form"):
            self.faults.append(f"<{tag}> at {self.getpos()}")
        for name, value in attrs:
            if name.startswith("on") or name in REFERENCES or name == "style":
                self.faults.append(f"{tag} {name}={value} at {self.getpos()}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> at {self.getpos()} closes {self.open[-1:]}")
        else:
            self.open.pop()


def main():
    with open(sys.argv[1], encoding="utf-8") as report:
        text = report.read()
    checker = Checker()
    checker.feed(text)
    checker.close()
    faults = checker.faults + [f"<{tag}> is never closed" for tag in checker.open]
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    for drawing in drawings:
        for element in ElementTree.fromstring(drawing).iter():
            for name, value in element.attrib.items():
                if re.search(r"nan|inf", value, re.I) and name in (
                    "x",
                    "y",
                    "x1",
                    "x2",
                    "y1",
                    "y2",
                    "cx",
                    "cy",
                    "width",
                    "height",
                    "d",
                    "points",
                ):
                    faults.append(f"{name}={value[:80]} in a drawing")
    print(f"svg {len(drawings)} table {checker.counts.get('table', 0)}")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
