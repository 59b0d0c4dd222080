"""Functions only, no engine: expand orders into lines, drop cancelled ones, keep one row per line."""

from pydantic import BaseModel, Field

from chainette import Chain, apply


class Order(BaseModel):
    order: str
    customer: str
    #: "2 x kettle @ 24.90; 1 x mug @ 6.50 (cancelled)"
    lines: str
    country: str


class Line(BaseModel):
    customer: str
    country: str
    product: str
    quantity: int = Field(ge=1)
    cents: int = Field(ge=0)
    cancelled: bool


class Invoice(BaseModel):
    customer: str
    product: str
    net_cents: int
    vat_cents: int
    total_cents: int


VAT_PERCENT = {"DE": 19, "FR": 20, "IT": 22, "ES": 21, "NL": 21}


@apply
def split_lines(order: Order) -> list[Line]:
    """One row per line of the order; a line that does not read as such rejects the order."""
    return [_line(order, part.strip()) for part in order.lines.split(";")]


def _line(order: Order, text: str) -> Line:
    quantity, rest = text.removesuffix("(cancelled)").split(" x ", 1)
    product, price = rest.rsplit(" @ ", 1)
    euros, cents = price.strip().split(".")
    return Line(
        customer=order.customer,
        country=order.country,
        product=product.strip(),
        quantity=int(quantity),
        cents=100 * int(euros) + int(cents),
        cancelled=text.endswith("(cancelled)"),
    )


@apply
def keep_valid(line: Line) -> Line | None:
    """Drops cancelled lines."""
    return None if line.cancelled else line


@apply
def invoice(line: Line) -> Invoice:
    """Adds the VAT of the customer's country."""
    net = line.quantity * line.cents
    vat = round(net * VAT_PERCENT[line.country] / 100)
    return Invoice(customer=line.customer, product=line.product, net_cents=net, vat_cents=vat, total_cents=net + vat)


chain = Chain(name="pure_python", steps=[split_lines, keep_valid, invoice], emoji="🐍")
