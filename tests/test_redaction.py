"""Secrets never reach a screen, a log or a store."""

import pytest

from tracked_cls.redaction import redacted

SECRET = "s3cr3t-0f-9"
HOLDING = {
    "server": (f"http://ann:{SECRET}@host:5000/api", "http://ann:***@host:5000/api"),
    "database": (f"postgresql+psycopg://ann:{SECRET}@db/trials", "postgresql+psycopg://ann:***@db/trials"),
    "no user": (f"redis://:{SECRET}@db", "redis://:***@db"),
    "in a sentence": (f"refused by http://ann:{SECRET}@host, try again", "refused by http://ann:***@host, try again"),
    "in quotes": (f"got 'http://ann:{SECRET}@host'", "got 'http://ann:***@host'"),
    "with an at": (f"http://ann:{SECRET}@x@host", "http://ann:***@host"),
    "with a slash": (f"http://ann:x/{SECRET}@host", "http://ann:***@host"),
    "token as user": (f"https://{SECRET}@github.com/a/b", "https://***@github.com/a/b"),
    "in the query": (f"postgresql+psycopg://db/x?user=ann&password={SECRET}&a=1", "postgresql+psycopg://db/x?user=ann&password=***&a=1"),
    "signed address": (f"https://s3/x?X-Amz-Signature={SECRET}&y=2", "https://s3/x?X-Amz-Signature=***&y=2"),
    "sas": (f"https://blob/x?sv=1&sig={SECRET}", "https://blob/x?sv=1&sig=***"),
    "environment": (f"MLFLOW_TRACKING_PASSWORD={SECRET}", "MLFLOW_TRACKING_PASSWORD=***"),
    "quoted value": (f"password='{SECRET} b' host=x", "password=*** host=x"),
    "header": (f"Authorization: Bearer {SECRET}", "Authorization: Bearer ***"),
    "two": (f"http://a:{SECRET}@x http://b:{SECRET}@y", "http://a:***@x http://b:***@y"),
}  # fmt: skip
PLAIN = [
    "sqlite:////home/ann/mlflow.db",
    "http://127.0.0.1:5000/#/experiments/0/runs/abc?workflowType=machine_learning",
    "models:/digits-classifier@champion",
    "postgresql+psycopg://ann@db/trials",
    "optimizer.lr@sgd: {low: 0.1}",
    "classes: mean 3 tokens=5",
    "a basic rule",
    "",
]


@pytest.mark.parametrize(("text", "shown"), HOLDING.values(), ids=HOLDING)
def test_a_secret_is_hidden_and_the_rest_stays(text, shown):
    assert redacted(text) == shown
    assert SECRET not in redacted(text)
    assert redacted(redacted(text)) == shown


@pytest.mark.parametrize("text", PLAIN)
def test_text_without_secrets_stays_as_it_is(text):
    assert redacted(text) == text
