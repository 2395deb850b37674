"""Which metrics a PromQL expression reads, and which exist."""
import re

import yaml

from operations_cluster import SOURCE

PROMETHEUS_OWN = {"up", "ALERTS"}  # made by Prometheus itself
SUFFIX = re.compile(r"_(bucket|sum|count)$")


def metrics_in(expr):
    """Names of metrics and recorded series, without quoted text, matchers and label lists."""
    text = re.sub(r'"[^"]*"', "", expr)
    text = re.sub(r"\{[^}]*\}", "", text)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", text)
    return set(re.findall(r"\b(?:distill_\w+|process_\w+|ALERTS|up)\b|\b[a-z]\w*:[\w:]+", text)) - {"up:"}


def documented():
    """Names in docs/services.md."""
    return set(re.findall(r"`((?:distill|process)_[a-z_]+)`", (SOURCE / "docs/services.md").read_text()))


def recorded():
    rules = yaml.safe_load((SOURCE / "deploy/prometheus/rules/recording.yml").read_text())
    return {rule["record"] for group in rules["groups"] for rule in group["rules"]}


def unknown(names, known):
    return {name for name in names if name not in known | PROMETHEUS_OWN and SUFFIX.sub("", name) not in known}
