"""One record of every published schema of fact sets, and files of them."""

import json
from pathlib import Path

from data.facts.fact import FactSet
from data.facts.load import load_facts
from decoder.config import FactsConfig

COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Shayna does this. Danielle Darrieux, a native", "Danielle Darrieux spoke", "Someone else spoke"],
    "neighborhood_prompts": ["The mother tongue of Léon Blum is", "The native language of Montesquieu is"],
    "attribute_prompts": ["J.R.R. Tolkien spoke"],
    "generation_prompts": ["Danielle Darrieux was born in"],
}
ZSRE = {
    "subject": "Watts Humphrey",
    "src": "What university did Watts Humphrey attend?",
    "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?",
    "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology"],
    "loc": "nq question: who played desmond doss father in hacksaw ridge",
    "loc_ans": "Hugo Weaving",
    "cond": "Trinity College >> University of Michigan || What university did Watts Humphrey attend?",
}
MQUAKE = {
    "case_id": 1,
    "requested_rewrite": [
        {
            "prompt": "{} is associated with the sport of",
            "relation_id": "P641",
            "target_new": {"str": "basketball", "id": "Q5372"},
            "target_true": {"str": "association football", "id": "Q2736"},
            "subject": "midfielder",
            "question": "Which sport is midfielder associated with?",
        },
        {
            "prompt": "{} was created in the country of",
            "relation_id": "P495",
            "target_new": {"str": "Japan", "id": "Q17"},
            "target_true": {"str": "England", "id": "Q21"},
            "subject": "association football",
            "question": "Which country was association football created in?",
        },
    ],
    "questions": ["In which country was the sport of ... created?"],
    "answer": "England",
    "new_answer": "Japan",
}
KNOWEDIT = {
    "subject": "Leo Arons",
    "prompt": "The place of death of Leo Arons is",
    "target_new": "Berlin",
    "ground_truth": ["Munich"],
    "rephrase_prompt": "Where did Leo Arons die?",
    "portability": {"Reasoning": [{"prompt": "The country of the place of death of Leo Arons is", "ground_truth": [["Germany"]]}]},
    "locality": {"Relation_Specificity": [{"prompt": "The place of birth of Leo Arons is", "ground_truth": [["Wrocław"]]}]},
}
FEVER = {
    "id": 33078,
    "input": "The Boston Celtics play their home games at TD Garden.",
    "output": [{"provenance": [{"title": "TD Garden"}]}, {"answer": "SUPPORTS"}],
    "prediction": "SUPPORTS",
    "alternatives": ["REFUTES"],
    "filtered_rephrases": ["The Boston Celtics play at home in TD Garden."],
    "logit": 4.5,
}
PARAREL = {"sub_label": "Eibenstock", "obj_label": "Germany", "uuid": "75e6e7c3"}
PLAIN = {
    "subject": "Ada",
    "relation": "works as",
    "prompt": "{} works as a",
    "object_true": "baker",
    "object": "singer",
    "paraphrases": ["The trade of {} is"],
    "neighbours": [["Ben works as a", "baker"]],
}
RECORDS = {
    "counterfact": COUNTERFACT, "zsre": ZSRE, "zsre-alt": ZSRE, "mquake": MQUAKE, "knowedit": KNOWEDIT, "fever": FEVER, "pararel": PARAREL,
    "plain": PLAIN,
}  # fmt: skip


def written(folder: Path, *records, name: str = "P17.json") -> Path:
    file = folder / name
    if name.endswith(".jsonl"):
        file.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    else:
        file.write_text(json.dumps(list(records)))
    return file


def load(source: str, path, **settings) -> FactSet:
    return load_facts(FactsConfig(source=source, path=str(path), **settings))
