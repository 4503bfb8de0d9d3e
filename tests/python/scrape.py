"""Scrapes a server as Prometheus does, by its own parser of OpenMetrics: scrape.py URL

Prints the samples as one JSON object, by series with their labels. The parser ends with an error at anything that the
format does not allow.
"""

import json
import sys
import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families


def main():
    with urllib.request.urlopen(sys.argv[1], timeout=60) as answer:
        kind = answer.headers["Content-Type"]
        text = answer.read().decode()
    assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8", kind
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, f"{family.name} has no help"
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    print(json.dumps(found))


if __name__ == "__main__":
    main()
