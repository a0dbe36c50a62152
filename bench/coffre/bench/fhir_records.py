"""FHIR R4 resources of about 1.3 kB from a seed, as an application stores them one by one.

    python -m coffre.bench.fhir_records

prints how well they compress, alone and in bulk, beside those that clinosim generates (coffre[demo]): a figure
of small records says little when they are more alike than real ones. No record is of a real person.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import click
import zstandard
from coffre.bench.typed_json import decoded
from coffre.cluster.admin import one_line_errors

__all__ = ["Compression", "FhirRecord", "compression", "fhir_records"]

_PATIENTS, _DOCTORS = 800, 160
_COMPRESS_LEVEL = 3
_BULK_RECORDS = 1000
_START = datetime(2024, 1, 1)
_HOSPITAL = "https://hopital.example.fr/fhir"
_V3 = "http://terminology.hl7.org/CodeSystem/v3-"
_HL7 = "http://terminology.hl7.org/CodeSystem/"
_UNITS = "http://unitsofmeasure.org"
_SNOMED = "http://snomed.info/sct"

_Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class FhirRecord:
    """One resource: its key in the store and its bytes, JSON in UTF-8."""

    key: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Compression:
    """Plaintext over zstd (level 3): each record alone, and a thousand records one after the other in one frame."""

    records: int
    mean_bytes: float
    alone: float
    bulk: float

    def __str__(self) -> str:
        return (
            f"{self.records} records of {self.mean_bytes:.0f} bytes, zstd {self.alone:.2f}:1 alone "
            f"and {self.bulk:.1f}:1 in bulk"
        )


class _Term(NamedTuple):
    """A code and what it means."""

    code: str
    display: str


class _Measured(NamedTuple):
    """Something that is measured, with its normal range in `unit` (UCUM)."""

    code: str
    display: str
    unit: str
    low: int | float  # as it stands in the record: 60 and not 60.0
    high: int | float
    decimals: int
    category: str
    category_display: str


class _Medication(NamedTuple):
    """A medicine with the doses that it is given in."""

    code: str
    display: str
    unit: str
    doses: tuple[int | float, ...]


@dataclass(frozen=True, slots=True)
class _Terms:
    """Codes and words to draw from: LOINC, ICD-10, ATC and SNOMED CT codes in everyday use."""

    measurements: tuple[_Measured, ...]
    flags: dict[str, str]
    conditions: tuple[_Term, ...]
    severities: tuple[_Term, ...]
    clinical_statuses: tuple[_Term, ...]
    verifications: tuple[_Term, ...]
    encounter_classes: tuple[_Term, ...]
    participations: tuple[_Term, ...]
    medications: tuple[_Medication, ...]
    routes: tuple[_Term, ...]
    procedures: tuple[_Term, ...]
    functions: tuple[_Term, ...]
    body_sites: tuple[_Term, ...]
    wards: tuple[str, ...]
    given_names: tuple[str, ...]
    family_names: tuple[str, ...]
    words: tuple[str, ...]


terms = decoded(
    _Terms, json.loads(Path(__file__).with_name("data").joinpath("fhir_terms.json").read_text("utf-8"))
)


@dataclass(frozen=True, slots=True)
class _Patient:
    """Whom a resource is about, in which stay, and who cared."""

    id: str
    record_number: str
    encounter: str
    conditions: tuple[tuple[str, _Term], ...]
    doctors: tuple[tuple[str, str], ...]


def fhir_records(seed: int) -> Iterator[FhirRecord]:
    """Resources without end, no two alike, the same ones for the same seed.

    They come as a hospital's system writes them: those of many patients by turns, in the order of time.
    """
    source = random.Random(seed)
    doctors = [_doctor(source) for _ in range(_DOCTORS)]
    patients = [_patient(source, doctors) for _ in range(_PATIENTS)]
    makers, weights = zip(*_MAKERS, strict=True)
    now = _START
    while True:
        now += timedelta(seconds=source.randint(1, 90))
        make: Callable[[random.Random, _Patient, datetime], _Json] = source.choices(makers, weights)[0]
        patient = source.choice(patients)
        resource = make(source, patient, now)
        resource["meta"] = {
            "versionId": str(source.randint(1, 4)),
            "lastUpdated": _time(now + timedelta(milliseconds=source.randint(0, 999)), "milliseconds"),
        }
        key = f"fhir/{resource['resourceType']}/{resource['id']}.json"
        yield FhirRecord(key, json.dumps(resource, ensure_ascii=False).encode())


def compression(records: Sequence[bytes]) -> Compression:
    """How well so many records compress; at least one."""
    compressor = zstandard.ZstdCompressor(level=_COMPRESS_LEVEL)
    plain_bytes = sum(map(len, records))
    alone_bytes = sum(len(compressor.compress(record)) for record in records)
    bulk_bytes = sum(
        len(compressor.compress(b"\n".join(records[start : start + _BULK_RECORDS])))
        for start in range(0, len(records), _BULK_RECORDS)
    )
    count = len(records)
    return Compression(count, plain_bytes / count, plain_bytes / alone_bytes, plain_bytes / bulk_bytes)


# -------------------------------------------------------------------- parts of resources


def _id(source: random.Random) -> str:
    return f"{source.getrandbits(64):016x}"


def _doctor(source: random.Random) -> tuple[str, str]:
    name = f"Dr {source.choice(terms.given_names)} {source.choice(terms.family_names)}"
    return _id(source), name


def _patient(source: random.Random, doctors: Sequence[tuple[str, str]]) -> _Patient:
    number = f"{source.randint(0, 10**10):010d}"
    conditions = tuple((_id(source), term) for term in source.sample(terms.conditions, 2))
    return _Patient(_id(source), number, _id(source), conditions, tuple(source.sample(doctors, 3)))


def _time(when: datetime, precision: str = "seconds") -> str:
    return when.isoformat(timespec=precision) + "+01:00"


def _begin(source: random.Random, kind: str, patient: _Patient, status: str) -> _Json:
    number = f"{patient.record_number}-{source.getrandbits(40):010X}"
    return {
        "resourceType": kind,
        "id": _id(source),
        "identifier": [{"system": f"{_HOSPITAL}/identifier/{kind.lower()}", "value": number}],
        "status": status,
        "subject": {"reference": f"Patient/{patient.id}"},
        "encounter": {"reference": f"Encounter/{patient.encounter}"},
    }


def _concept(system: str, code: str, display: str) -> _Json:
    return _coded(system, code, display) | {"text": display}


def _coded(system: str, code: str, display: str) -> _Json:
    return {"coding": [{"system": system, "code": code, "display": display}]}


def _carer(source: random.Random, patient: _Patient) -> _Json:
    number, name = source.choice(patient.doctors)
    return {"reference": f"Practitioner/{number}", "display": name}


def _quantity(value: float, unit: str) -> _Json:
    return {"value": value, "unit": unit, "system": _UNITS, "code": unit}


def _reasons(source: random.Random, patient: _Patient) -> list[_Json]:
    number, term = source.choice(patient.conditions)
    return [{"reference": f"Condition/{number}", "display": term.display}]


# -------------------------------------------------------------------- resources


def _observation(source: random.Random, patient: _Patient, now: datetime) -> _Json:
    term = source.choice(terms.measurements)
    width = term.high - term.low
    value = round(source.gauss((term.low + term.high) / 2, width / 2), term.decimals)
    flag = "L" if value < term.low else "H" if value > term.high else "N"
    resource = _begin(source, "Observation", patient, source.choice(("final", "final", "final", "amended")))
    resource |= {
        "category": [_coded(f"{_HL7}observation-category", term.category, term.category_display)],
        "code": _concept("http://loinc.org", term.code, term.display),
        "effectiveDateTime": _time(now - timedelta(minutes=source.randint(2, 180))),
        "issued": _time(now),
        "performer": [_carer(source, patient)],
        "valueQuantity": _quantity(value, term.unit),
        "interpretation": [_coded(f"{_V3}ObservationInterpretation", flag, terms.flags[flag])],
        "referenceRange": [
            {"low": _quantity(term.low, term.unit), "high": _quantity(term.high, term.unit)},
        ],
    }
    if source.random() < 0.25:
        resource["note"] = [{"text": _sentence(source, 8)}]
    return resource


def _condition(source: random.Random, patient: _Patient, now: datetime) -> _Json:
    term = source.choice(terms.conditions)
    severity = source.choice(terms.severities)
    resource = _begin(source, "Condition", patient, "")
    del resource["status"]
    return resource | {
        "clinicalStatus": _coded(f"{_HL7}condition-clinical", *source.choice(terms.clinical_statuses)),
        "verificationStatus": _coded(f"{_HL7}condition-ver-status", *source.choice(terms.verifications)),
        "category": [_coded(f"{_HL7}condition-category", "encounter-diagnosis", "Encounter Diagnosis")],
        "severity": _concept(_SNOMED, severity.code, severity.display),
        "code": _concept("http://hl7.org/fhir/sid/icd-10", term.code, term.display),
        "onsetDateTime": (now - timedelta(days=source.randint(0, 9000))).date().isoformat(),
        "recordedDate": _time(now),
        "recorder": _carer(source, patient),
        "asserter": _carer(source, patient),
        "note": [{"text": _sentence(source, 10)}],
    }


def _encounter(source: random.Random, patient: _Patient, now: datetime) -> _Json:
    kind, ward = source.choice(terms.encounter_classes), source.choice(terms.wards)
    minutes = source.randint(10, 6000)
    participants = [
        {
            "type": [_coded(f"{_V3}ParticipationType", code, display)],
            "individual": _carer(source, patient),
        }
        for code, display in terms.participations[: source.randint(1, 2)]
    ]
    resource = _begin(source, "Encounter", patient, source.choice(("finished", "in-progress")))
    del resource["encounter"]
    return resource | {
        "class": {"system": f"{_V3}ActCode", "code": kind[0], "display": kind[1]},
        "serviceType": {"text": ward},
        "participant": participants,
        "period": {"start": _time(now - timedelta(minutes=minutes)), "end": _time(now)},
        "length": _quantity(minutes, "min"),
        "reasonReference": _reasons(source, patient),
        "serviceProvider": {"reference": f"Organization/{ward.lower().replace(' ', '-')}", "display": ward},
        "location": [{"location": {"display": f"{ward}, lit {source.randint(1, 60)}"}, "status": "active"}],
    }


def _medication_request(source: random.Random, patient: _Patient, now: datetime) -> _Json:
    term = source.choice(terms.medications)
    dose, times = source.choice(term.doses), source.randint(1, 4)
    resource = _begin(source, "MedicationRequest", patient, source.choice(("active", "completed", "stopped")))
    return resource | {
        "intent": "order",
        "priority": source.choice(("routine", "routine", "urgent", "stat")),
        "medicationCodeableConcept": _concept("http://www.whocc.no/atc", term.code, term.display),
        "authoredOn": _time(now),
        "requester": _carer(source, patient),
        "reasonReference": _reasons(source, patient),
        "dosageInstruction": [
            {
                "sequence": 1,
                "text": f"{dose:g} {term.unit}, {times} fois par jour",
                "timing": {"repeat": {"frequency": times, "period": 1, "periodUnit": "d"}},
                "route": _concept(_SNOMED, *source.choice(terms.routes)),
                "doseAndRate": [{"doseQuantity": _quantity(dose, term.unit)}],
            }
        ],
        "dispenseRequest": {"numberOfRepeatsAllowed": source.randint(0, 5)},
    }


def _procedure(source: random.Random, patient: _Patient, now: datetime) -> _Json:
    term, site = source.choice(terms.procedures), source.choice(terms.body_sites)
    end = now - timedelta(minutes=source.randint(1, 300))
    resource = _begin(source, "Procedure", patient, "completed")
    return resource | {
        "code": _concept(_SNOMED, term.code, term.display),
        "performedPeriod": {
            "start": _time(end - timedelta(minutes=source.randint(5, 240))),
            "end": _time(end),
        },
        "performer": [
            {"function": _concept(_SNOMED, *source.choice(terms.functions)), "actor": _carer(source, patient)}
            for _ in range(source.randint(1, 2))
        ],
        "reasonReference": _reasons(source, patient),
        "bodySite": [_concept(_SNOMED, site.code, site.display)],
        "outcome": _concept(_SNOMED, "385669000", "Successful"),
        "note": [{"text": _sentence(source, 12)}],
    }


def _sentence(source: random.Random, words: int) -> str:
    chosen = source.choices(terms.words, k=words + source.randint(-words // 3, words // 3))
    return " ".join(chosen).capitalize() + "."


_MAKERS: tuple[tuple[Callable[[random.Random, _Patient, datetime], _Json], int], ...] = (
    (_observation, 60),
    (_medication_request, 14),
    (_encounter, 10),
    (_condition, 10),
    (_procedure, 6),
)


# -------------------------------------------------------------------- beside clinosim


def _clinosim_compression(directory: Path) -> Compression:
    from coffre.dev.dataset import generate, records

    generate(directory, scale="small", progress=lambda step, done: None)
    singles = [
        record.path.read_bytes()
        for record in records(directory)
        if record.key.startswith("fhir/") and record.key.split("/")[1] not in ("bulk", "bundle")
    ]
    random.Random(1).shuffle(singles)
    return compression(singles)


@click.command()
@one_line_errors
def main() -> None:
    """How well the records compress, beside clinosim's."""
    with tempfile.TemporaryDirectory() as directory:
        click.echo(f"clinosim: {_clinosim_compression(Path(directory) / 'dataset')}")
    click.echo(f"bench:    {compression([record.data for record in islice(fhir_records(1), 10_000)])}")


if __name__ == "__main__":
    main()
