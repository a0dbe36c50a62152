"""Codes and words that the generated FHIR records draw from: LOINC, ICD-10, ATC and SNOMED CT codes in everyday use."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "BODY_SITES",
    "CLINICAL_STATUSES",
    "CONDITIONS",
    "ENCOUNTER_CLASSES",
    "FAMILY_NAMES",
    "FLAGS",
    "FUNCTIONS",
    "GIVEN_NAMES",
    "MEASUREMENTS",
    "MEDICATIONS",
    "PARTICIPATIONS",
    "PROCEDURES",
    "ROUTES",
    "SEVERITIES",
    "VERIFICATIONS",
    "WARDS",
    "WORDS",
    "Measured",
    "Medication",
    "Term",
]


class Term(NamedTuple):
    """A code and what it means."""

    code: str
    display: str


class Measured(NamedTuple):
    """Something that is measured, with its normal range in `unit` (UCUM)."""

    code: str
    display: str
    unit: str
    low: float
    high: float
    decimals: int
    category: str
    category_display: str


class Medication(NamedTuple):
    """A medicine with the doses that it is given in."""

    code: str
    display: str
    unit: str
    doses: tuple[float, ...]


def _vital(code: str, display: str, unit: str, low: float, high: float, decimals: int) -> Measured:
    return Measured(code, display, unit, low, high, decimals, "vital-signs", "Vital Signs")


def _laboratory(code: str, display: str, unit: str, low: float, high: float, decimals: int) -> Measured:
    return Measured(code, display, unit, low, high, decimals, "laboratory", "Laboratory")


MEASUREMENTS = (
    _vital("8867-4", "Heart rate", "/min", 60, 100, 0),
    _vital("9279-1", "Respiratory rate", "/min", 12, 20, 0),
    _vital("8310-5", "Body temperature", "Cel", 36.1, 37.8, 1),
    _vital("8480-6", "Systolic blood pressure", "mm[Hg]", 90, 140, 0),
    _vital("8462-4", "Diastolic blood pressure", "mm[Hg]", 60, 90, 0),
    _vital("59408-5", "Oxygen saturation in Arterial blood by Pulse oximetry", "%", 94, 100, 0),
    _vital("29463-7", "Body weight", "kg", 45, 95, 1),
    _vital("39156-5", "Body mass index (BMI)", "kg/m2", 18.5, 25, 1),
    _laboratory("2951-2", "Sodium [Moles/volume] in Serum or Plasma", "mmol/L", 136, 145, 0),
    _laboratory("2823-3", "Potassium [Moles/volume] in Serum or Plasma", "mmol/L", 3.5, 5.1, 1),
    _laboratory("2160-0", "Creatinine [Mass/volume] in Serum or Plasma", "mg/dL", 0.6, 1.3, 2),
    _laboratory("2345-7", "Glucose [Mass/volume] in Serum or Plasma", "mg/dL", 70, 99, 0),
    _laboratory("718-7", "Hemoglobin [Mass/volume] in Blood", "g/dL", 12, 17.5, 1),
    _laboratory("6690-2", "Leukocytes [#/volume] in Blood by Automated count", "10*3/uL", 4.5, 11, 2),
    _laboratory("777-3", "Platelets [#/volume] in Blood by Automated count", "10*3/uL", 150, 450, 0),
    _laboratory("4548-4", "Hemoglobin A1c/Hemoglobin.total in Blood", "%", 4, 5.6, 1),
    _laboratory("1988-5", "C reactive protein [Mass/volume] in Serum or Plasma", "mg/L", 0, 5, 1),
    _laboratory("1742-6", "Alanine aminotransferase in Serum or Plasma", "U/L", 7, 56, 0),
    _laboratory("1975-2", "Bilirubin.total [Mass/volume] in Serum or Plasma", "mg/dL", 0.2, 1.2, 2),
    _laboratory("3016-3", "Thyrotropin [Units/volume] in Serum or Plasma", "m[IU]/L", 0.4, 4, 2),
    _laboratory("6598-7", "Troponin T.cardiac [Mass/volume] in Serum or Plasma", "ng/mL", 0, 0.01, 3),
    _laboratory("2085-9", "Cholesterol in HDL [Mass/volume] in Serum or Plasma", "mg/dL", 40, 60, 0),
)
FLAGS = {"L": "Low", "N": "Normal", "H": "High"}
CONDITIONS = (
    Term("I10", "Essential (primary) hypertension"),
    Term("E11.9", "Type 2 diabetes mellitus without complications"),
    Term("J18.9", "Pneumonia, unspecified organism"),
    Term("I50.9", "Heart failure, unspecified"),
    Term("N39.0", "Urinary tract infection, site not specified"),
    Term("J44.1", "Chronic obstructive pulmonary disease with acute exacerbation"),
    Term("I48.9", "Atrial fibrillation and atrial flutter, unspecified"),
    Term("K35.8", "Acute appendicitis, other and unspecified"),
    Term("S72.0", "Fracture of neck of femur"),
    Term("C50.9", "Malignant neoplasm of breast, unspecified"),
    Term("F32.9", "Depressive episode, unspecified"),
    Term("M17.9", "Gonarthrosis, unspecified"),
    Term("K80.2", "Calculus of gallbladder without cholecystitis"),
    Term("A09", "Infectious gastroenteritis and colitis, unspecified"),
    Term("G43.9", "Migraine, unspecified"),
    Term("I63.9", "Cerebral infarction, unspecified"),
    Term("D50.9", "Iron deficiency anaemia, unspecified"),
    Term("N18.3", "Chronic kidney disease, stage 3"),
)
SEVERITIES = (Term("255604002", "Mild"), Term("6736007", "Moderate"), Term("24484000", "Severe"))
CLINICAL_STATUSES = (Term("active", "Active"), Term("resolved", "Resolved"), Term("recurrence", "Recurrence"))
VERIFICATIONS = (Term("confirmed", "Confirmed"), Term("provisional", "Provisional"))
ENCOUNTER_CLASSES = (
    Term("AMB", "ambulatory"),
    Term("IMP", "inpatient encounter"),
    Term("EMER", "emergency"),
    Term("SS", "short stay"),
)
PARTICIPATIONS = (Term("ATND", "attender"), Term("ADM", "admitter"), Term("CON", "consultant"))
MEDICATIONS = (
    Medication("N02BE01", "paracetamol", "mg", (500, 1000)),
    Medication("J01CA04", "amoxicillin", "mg", (250, 500, 1000)),
    Medication("C09AA05", "ramipril", "mg", (1.25, 2.5, 5, 10)),
    Medication("A10BA02", "metformin", "mg", (500, 850, 1000)),
    Medication("B01AC06", "acetylsalicylic acid", "mg", (75, 100, 160)),
    Medication("C10AA05", "atorvastatin", "mg", (10, 20, 40, 80)),
    Medication("A02BC01", "omeprazole", "mg", (20, 40)),
    Medication("C07AB07", "bisoprolol", "mg", (1.25, 2.5, 5, 10)),
    Medication("B01AB05", "enoxaparin", "[IU]", (4000, 6000, 8000)),
    Medication("C03CA01", "furosemide", "mg", (20, 40, 60)),
    Medication("N06AB10", "escitalopram", "mg", (5, 10, 20)),
    Medication("R03AC02", "salbutamol", "ug", (100, 200)),
    Medication("A10AE04", "insulin glargine", "[IU]", (8, 12, 20, 34)),
    Medication("H02AB06", "prednisolone", "mg", (5, 20, 40)),
)
ROUTES = (
    Term("26643006", "Oral route"),
    Term("47625008", "Intravenous route"),
    Term("34206005", "Subcutaneous route"),
)
PROCEDURES = (
    Term("80146002", "Excision of appendix"),
    Term("73761001", "Colonoscopy"),
    Term("40701008", "Echocardiography"),
    Term("179344006", "Total replacement of hip joint"),
    Term("38102005", "Cholecystectomy"),
    Term("399208008", "Plain chest X-ray"),
    Term("265764009", "Renal dialysis"),
    Term("77477000", "Computed tomography"),
    Term("29303009", "Electrocardiographic procedure"),
)
FUNCTIONS = (Term("304292004", "Surgeon"), Term("88189002", "Anesthesiologist"), Term("224535009", "Nurse"))
BODY_SITES = (
    Term("818983003", "Abdomen"),
    Term("51185008", "Thoracic structure"),
    Term("29836001", "Hip region structure"),
    Term("72696002", "Knee region structure"),
    Term("80891009", "Heart structure"),
)
WARDS = (
    "Cardiologie",
    "Pneumologie",
    "Urgences",
    "Chirurgie digestive",
    "Neurologie",
    "Oncologie",
    "Gynecologie",
    "Pediatrie",
    "Medecine interne",
    "Orthopedie",
)
_GIVEN_NAMES = """
Adele Ali Amina Antoine Aurore Bastien Camille Chloe Claire Damien Elodie Emile Fanny Florian Gabriel Hugo Ines
Jeanne Karim Lea Louis Lucie Mael Manon Marius Mehdi Nadia Nathan Noemie Olivier Pauline Quentin Romain Sarah Simon
Sophie Theo Valentin Yanis Zoe
"""
GIVEN_NAMES = tuple(_GIVEN_NAMES.split())
_FAMILY_NAMES = """
Andre Barbier Benali Bertrand Blanchard Bonnet Boyer Brunet Caron Chevalier Clement Colin David Denis Dubois Dumont
Dupuis Fabre Faure Fontaine Garnier Gauthier Girard Guerin Henry Jacquet Lambert Leclerc Lefevre Legrand Lemaire
Marchand Masson Mercier Morel Nguyen Noel Perrin Picard Renaud Riviere Robin Roussel Roux Schmitt Traore Vasseur
Vidal
"""
FAMILY_NAMES = tuple(_FAMILY_NAMES.split())
_WORDS = """
a admission aggravation allergie amelioration ancien antalgique antecedents apres arret asthenie augmentation avant
avec bilan bonne cardiaque chute clinique complet constantes consultation controle correcte cutane dans debut depuis
diete discrete domicile douleur droite dyspnee entourage entree equipe etat evolution examen externe faible
favorable febrile fievre fonction gauche gene habituel hier hydratation infirmier jours kinesitherapie les leger
marche matin medecin mesure moderee nausees nocturne normale nuit observance oedemes ordonnance par pansement
patient perfusion persistante poids pose prelevement prescrit pression prevu prise prochain propre pulmonaire rapide
recente reevaluation regime renforcee repos reprise respiratoire rien satisfaisante selon signe sans sommeil sortie
stable suivi surveillance symptomes tension toux traitement transfert urine vers visite voie
"""
WORDS = tuple(_WORDS.split())
