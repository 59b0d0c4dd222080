"""The only Python of the chain: a model and a function the chain file names."""

from pydantic import BaseModel


class Ticket(BaseModel):
    text: str


def clean(ticket: Ticket) -> Ticket | None:
    """Drops tickets without text, and folds white space."""
    text = " ".join(ticket.text.split())
    return Ticket(text=text) if text else None
