"""For each functional case of the handbook: code that is right, and code with a likely mistake."""

SOLUTIONS: dict[str, tuple[str, str]] = {
    "functional-01": (
        """
import re

NAMES = {"B": "Berth", "S": "Silo", "L": "Ledgerbase", "C": "Courier", "W": "Wisp",
         "G": "Gatehouse", "X": "platform-wide"}

def product_of(code):
    match = re.fullmatch(r"TW-([BSLCWGX])[0-9]{3,4}", code)
    if not match:
        raise ValueError(code)
    return NAMES[match[1]]
""",
        """
NAMES = {"B": "Berth", "S": "Silo", "L": "Ledgerbase", "C": "Courier", "W": "Wisp",
         "G": "Gatehouse", "X": "platform-wide"}

def product_of(code):
    if not code.startswith("TW-") or code[3] not in NAMES:
        raise ValueError(code)
    return NAMES[code[3]]
""",
    ),
    "functional-02": (
        """
def longest_pause(attempt):
    return min(20.0, 0.4 * 2 ** (attempt - 1))
""",
        """
def longest_pause(attempt):
    return 0.4 * 2 ** (attempt - 1)
""",
    ),
    "functional-03": (
        """
def late_fee(open_amount, day):
    return round(open_amount * 0.015, 2) if day >= 9 else 0.0
""",
        """
def late_fee(open_amount, day):
    return round(open_amount * 0.015, 2) if day > 9 else 0.0
""",
    ),
    "functional-04": (
        """
def attempts(kinds):
    for made, kind in enumerate(kinds, start=1):
        if kind == "no" or made == 6:
            return made
    return len(kinds)
""",
        """
def attempts(kinds):
    for made, kind in enumerate(kinds, start=1):
        if kind == "no":
            return made
    return len(kinds)
""",
    ),
    "functional-05": (
        """
def account_state(days_past_due):
    if days_past_due >= 60:
        return "ended"
    if days_past_due >= 30:
        return "suspended"
    return "read-only" if days_past_due >= 21 else "ok"
""",
        """
def account_state(days_past_due):
    if days_past_due >= 75:
        return "ended"
    if days_past_due >= 45:
        return "suspended"
    return "read-only" if days_past_due >= 28 else "ok"
""",
    ),
    "functional-06": (
        """
from datetime import timedelta

def due_date(invoice_date):
    return invoice_date + timedelta(days=14)
""",
        """
def due_date(invoice_date):
    return invoice_date.replace(day=invoice_date.day + 14)
""",
    ),
    "functional-07": (
        """
def texas_tax(amount):
    return round(amount * 0.8 * 0.0825, 2)
""",
        """
def texas_tax(amount):
    return round(amount * 0.0825, 2)
""",
    ),
    "functional-08": (
        """
def hour_cost(list_price, commitment, discount):
    return commitment + max(0.0, list_price - commitment / (1 - discount))
""",
        """
def hour_cost(list_price, commitment, discount):
    return commitment + list_price - commitment / (1 - discount)
""",
    ),
    "functional-09": (
        """
import re

def parse_invoice(number):
    match = re.fullmatch(r"TWK-([0-9]{4})-([0-9]{2})-([0-9]+)", number)
    if not match or not 1 <= int(match[2]) <= 12:
        raise ValueError(number)
    return int(match[1]), int(match[2]), int(match[3])
""",
        """
def parse_invoice(number):
    kind, year, month, running = number.split("-")
    if not kind.startswith("TW"):
        raise ValueError(number)
    return int(year), int(month), int(running)
""",
    ),
    "functional-10": (
        """
def charged(totals):
    amounts, carried = [], 0.0
    for total in totals:
        due = round(total + carried, 2)
        amounts.append(due if due >= 0.5 else 0)
        carried = 0.0 if due >= 0.5 else due
    return amounts
""",
        """
def charged(totals):
    return [total if total >= 0.5 else 0 for total in totals]
""",
    ),
    "functional-11": (
        """
def egress_cost(gib):
    return round(max(0, gib - 2500) * 0.041, 2)
""",
        """
def egress_cost(gib):
    return round((gib - 2500) * 0.041, 2)
""",
    ),
    "functional-12": (
        """
def prorated(fee, day, days_in_month):
    return round(fee * (days_in_month - day + 1) / days_in_month, 2)
""",
        """
def prorated(fee, day, days_in_month):
    return round(fee * (days_in_month - day) / days_in_month, 2)
""",
    ),
    "functional-13": (
        """
def billed_seconds(starts):
    return sum(max(60, seconds) for seconds in starts)
""",
        """
def billed_seconds(starts):
    return max(60, sum(starts)) if starts else 0
""",
    ),
    "functional-14": (
        """
def accident_refund(amount, days_until_stopped, had_budget):
    if days_until_stopped > 3 or not had_budget:
        return 0
    return round(min(750, amount / 2), 2)
""",
        """
def accident_refund(amount, days_until_stopped, had_budget):
    if days_until_stopped > 7 or not had_budget:
        return 0
    return round(min(200, amount), 2)
""",
    ),
    "functional-15": (
        """
from datetime import date

def policy(charge_date):
    return "2026" if charge_date >= date(2026, 1, 15) else "2024"
""",
        """
def policy(charge_date):
    return str(2026 if charge_date.year >= 2026 else 2024)
""",
    ),
    "functional-16": (
        """
def all_items(fetch):
    items, cursor = [], None
    while True:
        page = fetch(cursor)
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return items
""",
        """
def all_items(fetch):
    items, cursor = [], None
    while True:
        page = fetch(cursor)
        items += page["items"]
        cursor = page["next_cursor"]
        if len(items) >= page["total_estimate"] or not page["items"]:
            return items
""",
    ),
    "functional-17": (
        """
def money(value):
    return float(value.split()[0]) if isinstance(value, str) else float(value)
""",
        """
def money(value):
    return float(value)
""",
    ),
    "functional-18": (
        """
def valid_key(key):
    return 16 <= len(key) <= 64
""",
        """
def valid_key(key):
    return 16 < len(key) < 64
""",
    ),
    "functional-19": (
        """
import hashlib, hmac

def valid(secret, body, header, now):
    part = dict(p.split("=", 1) for p in header.split(","))
    if abs(now - int(part["t"])) > 240:
        return False
    want = hmac.new(secret, part["t"].encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(want, part["s"])
""",
        """
import hashlib, hmac

def valid(secret, body, header, now):
    part = dict(p.split("=", 1) for p in header.split(","))
    want = hmac.new(secret, part["t"].encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(want, part["s"])
""",
    ),
    "functional-20": (
        """
def pauses():
    return [20, 2 * 60, 15 * 60, 3600] + 6 * [10 * 3600]
""",
        """
def pauses():
    return [20, 2 * 60, 15 * 60, 3600] + 5 * [10 * 3600]
""",
    ),
    "functional-21": (
        """
def part_count(size_mib, part_mib):
    if not 16 <= part_mib <= 4096:
        raise ValueError("part size")
    count = -(-size_mib // part_mib)
    if count > 5000:
        raise ValueError("too many parts")
    return count
""",
        """
def part_count(size_mib, part_mib):
    if not 16 <= part_mib <= 4096:
        raise ValueError("part size")
    return size_mib // part_mib + 1
""",
    ),
    "functional-22": (
        """
def drain_seconds(depth, consumed, produced):
    return depth / (consumed - produced) if consumed > produced else None
""",
        """
def drain_seconds(depth, consumed, produced):
    return depth / (consumed - produced) if consumed != produced else None
""",
    ),
    "functional-23": (
        """
def business_credit(availability, charges):
    if availability >= 99.95:
        share = 0.0
    elif availability >= 99.0:
        share = 0.15
    elif availability >= 95.0:
        share = 0.30
    else:
        share = 0.60
    return round(charges * share, 2)
""",
        """
def business_credit(availability, charges):
    share = 0.10 if availability >= 99.0 else 0.15 if availability >= 95.0 else 0.25
    return round(charges * share, 2) if availability < 99.9 else 0
""",
    ),
    "functional-24": (
        """
from datetime import timedelta

def erased_on(closed_on):
    return closed_on + timedelta(days=30)
""",
        """
from datetime import timedelta

def erased_on(closed_on):
    return closed_on + timedelta(days=60)
""",
    ),
}
