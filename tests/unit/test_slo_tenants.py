"""Targets and tenants in an SLO file: what it may say, and who pays for a request."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import UserError
from headway.slo import NO_PROMISE, STAMP, Slo, SloBook
from headway.slo_digests import digest_of
from headway.slo_document import FILE_TABLES
from headway.slo_rules import MAX_WEIGHT
from headway.slo_tenants import TENANT_FIELDS, TenantBook, TenantTerms

KEY, OTHER, GATEWAY = "sk-research-1", "sk-research-2", "sk-of-the-gateway"

FILE = f"""
tenant_header = "X-Tenant"
gateway_keys = ["sha256:{digest_of(GATEWAY)}"]
unpromised = "last"
[classes.code]
ttft_s = 0.5
target = 0.95
[classes.chat]
ttft_s = 1.0
[tenants.research]
share = 2
target = 0.9
keys = ["{KEY}", "sha256:{digest_of(OTHER)}"]
[tenants."Büro 7"]
"""


def book_of(text: str) -> SloBook:
    return SloBook.parse(tomllib.loads(text))


def test_a_class_has_a_target() -> None:
    """It travels with every request of the class, also where that changes a span."""
    book = book_of(FILE)
    assert book.promise({"slo_class": "code"}).target == 0.95
    assert book.promise({"slo_class": "code", "slo_ttft_ms": 300}).target == 0.95
    assert book.promise({"slo_class": "chat"}).target is None
    assert book.promise({"slo_ttft_ms": 300}).target is None


def test_a_tenant_has_a_share_and_a_target() -> None:
    """Of its table, else one share and no target."""
    book = book_of(FILE)
    code = Slo(0.5, class_name="code", target=0.95)
    named = book.promise({"slo_class": "code"}, tenant="research")
    assert named == Slo(
        0.5, class_name="code", target=0.95, tenant="research", share=2.0, tenant_target=0.9
    )
    assert book.promise({"slo_class": "code"}, tenant="Büro 7") == Slo(
        0.5, class_name="code", target=0.95, tenant="Büro 7"
    )
    assert book.promise({"slo_class": "code"}, tenant="nowhere named").share == 1.0
    assert book.promise({"slo_class": "code"}) == code


def test_requests_without_a_promise_come_last_where_the_file_says_so() -> None:
    """Their share is 0 then, whoever pays; with "fair" or without a word it is their tenant's."""
    last, fair = book_of(FILE), book_of(FILE.replace("last", "fair"))
    unsaid = book_of(FILE.replace('unpromised = "last"', ""))
    for tenant in ("", "research"):
        assert last.promise({}, tenant=tenant).share == 0.0
        assert fair.promise({}, tenant=tenant).share == (2.0 if tenant else 1.0)
        assert last.promise({"slo_ttft_ms": 9}, tenant=tenant).share > 0.0
    assert unsaid == fair
    assert last.resolve({}) == last.unjudged == Slo(share=0.0)
    assert fair.resolve({}) is fair.unjudged is NO_PROMISE


def test_the_stamp_carries_all_of_it() -> None:
    """What the edge works out is what the scheduler takes, whatever its own file says."""
    book = book_of(FILE)
    for slo in (
        book.promise({"slo_class": "code"}, tenant="research"),
        book.promise({}, tenant="Büro 7"),
        book.unjudged,
    ):
        assert SloBook.empty().resolve({STAMP: slo.stamp()}) == slo
        assert book.resolve({STAMP: slo.stamp()}) == slo


@pytest.mark.parametrize(
    "text",
    [
        'tenant_header = "x-tenant"',
        'unpromised = "last"',
        "[tenants.research]\nshare = 2",
        "[classes]\n[tenants.research]",
    ],
)
def test_a_file_of_tenants_needs_no_class(text: str) -> None:
    """Nobody is promised anything by it, and a client that names a class is told so."""
    book = book_of(text)
    assert not book.promise({}).is_promise
    with pytest.raises(UserError, match=r"the classes are: none\.$"):
        book.promise({"slo_class": "chat"})


def test_without_the_edge_nobody_in_particular_pays() -> None:
    """The scheduler sees no keys nor headers; promises count as ever."""
    book = book_of(FILE)
    assert book.resolve({"slo_class": "code"}) == Slo(0.5, class_name="code", target=0.95)
    keys = book_of(FILE + "[keys.gold]\nclass = 'code'")
    assert keys.resolve({}) == Slo(share=0.0)
    with pytest.raises(UserError, match="middleware"):
        keys.resolve({"slo_class": "code"})


@pytest.mark.parametrize("name", ["slo_target", "slo_tenant", "slo_share", "slo_tenant_target"])
def test_clients_set_none_of_it(name: str) -> None:
    """The names are unknown fields, as any other."""
    with pytest.raises(UserError, match=f"'{name}' is not an SLO field"):
        book_of(FILE).promise({name: 0.5})


def test_a_key_counts_where_somebody_checks_it() -> None:
    """The file lists it, or the server accepts it; else a client could vary it."""
    tenants = book_of(FILE).tenants
    for key in (KEY, OTHER):
        for is_checked in (True, False):
            assert tenants.tenant_of_key(key.encode(), is_checked=is_checked) == "research"
    name = f"key-{digest_of('sk-new')[:12]}"
    assert tenants.tenant_of_key(b"sk-new", is_checked=True) == name
    assert tenants.tenant_of_key(b"sk-new", is_checked=False) is None
    assert tenants.tenant_of_key(None, is_checked=True) is None
    assert tenants.tenant_of_key(GATEWAY.encode(), is_checked=True) is None
    assert TenantBook().tenant_of_key(b"sk-new", is_checked=True) == name


def test_a_key_with_other_letters_is_found_however_it_is_sent() -> None:
    """As UTF-8, or as ISO 8859-1."""
    tenants = book_of('[tenants.a]\nkeys = ["schlüssel"]').tenants
    for encoding in ("utf-8", "latin-1"):
        assert tenants.tenant_of_key("schlüssel".encode(encoding), is_checked=False) == "a"


def test_no_key_is_kept_in_clear() -> None:
    """In memory there are digests only."""
    book = book_of(FILE + f'[keys."{KEY}-3"]\nclass = "chat"')
    assert KEY not in repr(book)
    assert digest_of(KEY) in book.tenants.keys


SECRET = "sk-secret"

MISTAKES = [
    ("[classes.a]\ntarget = 1", "share between 0 and 1"),
    ("[classes.a]\ntarget = 0", "share between 0 and 1"),
    ("[classes.a]\ntarget = '0.9'", "share between 0 and 1"),
    ("[classes.a]\ntarget = true", "share between 0 and 1"),
    ("[classes.a]\ntarget = nan", "share between 0 and 1"),
    ("[classes.a]\nshare = 2", "'share'; allowed are .*target"),
    ("[classes.a]\n[limits]\ntarget = {min = 0.1}", "unknown key 'target'"),
    ("tenants = 3", "table of tables"),
    ("[tenants]\na = 3", r"\[tenants.a\] must be a table of share, target, keys"),
    ("[tenants.'']", "1 to 100 printable characters"),
    ('[tenants."a\\nb"]', "1 to 100 printable characters"),
    (f"[tenants.{'a' * 101}]", "1 to 100 printable characters"),
    ("[tenants.a]\nweight = 3", "unknown key 'weight'; allowed are share, target, keys"),
    ("[tenants.a]\nshare = 0", r"\[tenants.a\] share must be greater than 0"),
    ("[tenants.a]\nshare = -1", "greater than 0"),
    ("[tenants.a]\nshare = inf", "at most"),
    ("[tenants.a]\nshare = true", "number of shares"),
    ("[tenants.a]\ntarget = 1.5", r"\[tenants.a\] target must be a share between 0 and 1"),
    (f"[tenants.a]\nkeys = '{SECRET}'", r"\[tenants.a\] keys must be a list of API keys"),
    (f"[tenants.a]\nkeys = ['{SECRET}', 3]", "must be a list of API keys"),
    ("[tenants.a]\nkeys = ['']", "must be a list of API keys"),
    (f"[tenants.a]\nkeys = ['x', 'sha256:{SECRET}']", "keys: key 2 must be 'sha256:' and 64"),
    (
        f"[tenants.a]\nkeys = ['{SECRET}']\n"
        f"[tenants.b]\nkeys = ['x', 'sha256:{digest_of(SECRET)}']",
        r"\[tenants.b\]: keys has one that \[tenants.a\] has too; a key belongs to one tenant",
    ),
    ("tenant_header = 3", "must be the name of a header"),
    ("tenant_header = ''", "must be the name of a header"),
    ("tenant_header = 'X Tenant'", "must be the name of a header"),
    ("tenant_header = 'Authorization'", "cannot be Authorization"),
    ("tenant_header = 'X-Slo-Tenant'", "cannot be X-Slo-Tenant"),
    (f"gateway_keys = ['{SECRET}']", "gateway_keys needs tenant_header"),
    (f"tenant_header = 'x-t'\ngateway_keys = '{SECRET}'", "gateway_keys must be a list"),
    (
        f"tenant_header = 'x-t'\ngateway_keys = ['{SECRET}']\n[tenants.a]\nkeys = ['{SECRET}']",
        r"\[tenants.a\] has a key that is in gateway_keys too",
    ),
    ("unpromised = 'never'", "must be one of fair, last, not 'never'"),
    ("unpromised = false", "must be one of fair, last, not False"),
    ("tenant = 'x'", "unknown key 'tenant'; allowed are .*tenants, tenant_header"),
    ("[limits]", "name at least one class"),
    ("classes = 3\n[tenants.a]", "name at least one class"),
]


@pytest.mark.parametrize(("text", "sentence"), MISTAKES)
def test_a_mistake_gets_a_sentence_without_a_key(text: str, sentence: str) -> None:
    """One sentence says what is wrong and what is allowed; no key is repeated."""
    with pytest.raises(UserError, match=sentence) as told:
        book_of(text)
    assert SECRET not in str(told.value)
    assert digest_of(SECRET) not in str(told.value)
    assert str(told.value).count("\n") == 0


names = st.text(min_size=1, max_size=100).filter(str.isprintable)
shares = st.floats(1e-3, MAX_WEIGHT) | st.integers(1, 1000)
targets = st.none() | st.floats(0.0, 1.0, exclude_min=True, exclude_max=True)


@given(tables=st.dictionaries(names, st.tuples(shares, targets), min_size=1, max_size=5))
def test_what_a_table_says_is_what_its_tenant_gets(
    tables: dict[str, tuple[float, float | None]],
) -> None:
    """Any name, share and target that are allowed come out as they went in, each for its key."""
    document = {
        "tenants": {
            name: {
                "share": share,
                "keys": [f"key of {name}"],
                **({} if target is None else {"target": target}),
            }
            for name, (share, target) in tables.items()
        }
    }
    book = SloBook.parse(document)
    for name, (share, target) in tables.items():
        assert book.tenants.terms[name] == TenantTerms(float(share), target)
        assert book.tenants.tenant_of_key(f"key of {name}".encode(), is_checked=False) == name
        slo = book.promise({"slo_jct_ms": 1}, tenant=name)
        assert (slo.tenant, slo.share, slo.tenant_target) == (name, share, target)


toml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(SECRET),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*TENANT_FIELDS, "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    document=st.dictionaries(st.sampled_from(FILE_TABLES), toml_values, max_size=4),
    tenants=st.dictionaries(st.text(max_size=4), toml_values, max_size=3),
)
def test_whatever_a_file_says_is_a_book_or_a_sentence(
    document: dict[str, Any], tenants: dict[str, Any]
) -> None:
    """Never another error; and what is kept holds what the fields say of themselves."""
    try:
        book = SloBook.parse({**document, "tenants": tenants})
    except UserError:
        return
    for terms in book.tenants.terms.values():
        assert terms.share > 0
        assert terms.target is None or 0 < terms.target < 1
    assert book.tenants.header is not None or not book.tenants.gateway_keys
