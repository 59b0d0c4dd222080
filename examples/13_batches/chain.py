"""One database query for a whole batch of rows: look up the customer of each ticket, then score how urgent it is."""

import sqlite3

from pydantic import BaseModel

from chainette import BatchApply, Chain


class Ticket(BaseModel):
    customer: int
    text: str


class Known(BaseModel):
    customer: int
    name: str
    plan: str
    text: str


class Scored(BaseModel):
    name: str
    text: str
    #: Of all words, how many are urgent ones.
    urgency: float


CUSTOMERS = [
    (17, "Anna Keller", "team"),
    (23, "Marc Petit", "free"),
    (31, "Giulia Conti", "team"),
    (42, "Pilar Ruiz", "business"),
    (58, "Jan de Vries", "free"),
    (64, "Lena Vogt", "business"),
]

URGENT = {"urgent", "down", "broken", "lost", "now", "immediately", "charged", "twice"}


def database() -> sqlite3.Connection:
    """A stand-in for your own database."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, plan TEXT)")
    connection.executemany("INSERT INTO customers VALUES (?, ?, ?)", CUSTOMERS)
    return connection


@BatchApply
def look_up(tickets: list[Ticket]) -> list[Known | None]:
    """The customer of each ticket, by one query for the batch; tickets of unknown customers are dropped."""
    ids = {ticket.customer for ticket in tickets}
    marks = ",".join("?" * len(ids))
    with database() as connection:
        found = connection.execute(f"SELECT id, name, plan FROM customers WHERE id IN ({marks})", [*ids])  # noqa: S608
        known = {customer: (name, plan) for customer, name, plan in found}
    return [
        Known(customer=ticket.customer, name=known[ticket.customer][0], plan=known[ticket.customer][1], text=ticket.text)
        if ticket.customer in known
        else None
        for ticket in tickets
    ]


@BatchApply
def score(tickets: list[Known]) -> list[Scored]:
    """Raises for a ticket without words. The batch is then halved until that ticket is alone, so that it alone is rejected."""
    words = [ticket.text.lower().strip(".!? ").split() for ticket in tickets]
    return [
        Scored(name=ticket.name, text=ticket.text, urgency=sum(word.strip(".,!?") in URGENT for word in each) / len(each))
        for ticket, each in zip(tickets, words, strict=True)
    ]


chain = Chain(name="batches", steps=look_up >> score, batch_size=16)
