"""The languages of the translated benchmarks, and the words that their prompts need: one row each.

The collections LumiOpen/arc_challenge_mt and LumiOpen/opengpt-x_* hold these twenty.
"""

import difflib
from dataclasses import dataclass

from ahkio.core.errors import UserError


@dataclass(frozen=True)
class Language:
    """A language by its ISO 639-1 code; `hub` is its code in the opengpt-x collections, `flores` that of FLORES-200.

    `asks` and `tells` mark TruthfulQA's questions and answers; `letters` are those of MMLU's choices.
    """

    code: str
    name: str
    hub: str
    flores: str
    question: str
    answer: str
    asks: str
    tells: str
    letters: str = "ABCD"


TABLE = (
    Language("bg", "Bulgarian", "BG", "bul_Cyrl", "Въпрос", "Отговор", "В", "О", letters="АБВГ"),  # noqa: RUF001
    Language("cs", "Czech", "CS", "ces_Latn", "Otázka", "Odpověď", "O", "O"),
    Language("da", "Danish", "DA", "dan_Latn", "Spørgsmål", "Svar", "S", "S"),
    Language("de", "German", "DE", "deu_Latn", "Frage", "Antwort", "F", "A"),
    Language("el", "Greek", "EL", "ell_Grek", "Ερώτηση", "Απάντηση", "Ε", "Α", letters="ΑΒΓΔ"),  # noqa: RUF001
    Language("es", "Spanish", "ES", "spa_Latn", "Pregunta", "Respuesta", "P", "R"),
    Language("et", "Estonian", "ET", "est_Latn", "Küsimus", "Vastus", "K", "V"),
    Language("fi", "Finnish", "FI", "fin_Latn", "Kysymys", "Vastaa", "K", "V"),
    Language("fr", "French", "FR", "fra_Latn", "Question", "Réponse", "Q", "R"),
    Language("hu", "Hungarian", "HU", "hun_Latn", "Kérdés", "Válasz", "K", "V"),
    Language("it", "Italian", "IT", "ita_Latn", "Domanda", "Risposta", "D", "R"),
    Language("lt", "Lithuanian", "LT", "lit_Latn", "Klausimas", "Atsakymas", "K", "A"),
    Language("lv", "Latvian", "LV", "lvs_Latn", "Jautājums", "Atbilde", "J", "A"),
    Language("nl", "Dutch", "NL", "nld_Latn", "Vraag", "Antwoord", "V", "A"),
    Language("pl", "Polish", "PL", "pol_Latn", "Pytanie", "Odpowiedź", "P", "O"),
    Language("pt", "Portuguese", "PT-PT", "por_Latn", "Questão", "Resposta", "Q", "R"),
    Language("ro", "Romanian", "RO", "ron_Latn", "Întrebare", "Răspuns", "Î", "R"),
    Language("sk", "Slovak", "SK", "slk_Latn", "Otázka", "Odpoveď", "O", "O"),
    Language("sl", "Slovenian", "SL", "slv_Latn", "Vprašanje", "Odgovor", "V", "O"),
    Language("sv", "Swedish", "SV", "swe_Latn", "Fråga", "Svar", "F", "S"),
)
LANGUAGES = {language.code: language for language in TABLE}


def language(code: str) -> Language:
    """The row of a code other than "en". UserError naming near ones where there is none."""
    if code in LANGUAGES:
        return LANGUAGES[code]
    near = difflib.get_close_matches(code, LANGUAGES, n=2) or LANGUAGES
    raise UserError(f"There are no benchmarks in {code!r}; did you mean {' or '.join(near)}? English is 'en'.")
