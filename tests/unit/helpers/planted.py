"""What requests plant, by split, and how texts stand to one another."""

from data.facts.splits import SPLITS


def by_split(plan, requests):
    found = {split: [] for split in SPLITS}
    for one in requests:
        found[plan.split_of(one.fact.relation, one.fact.subject, one.object)].append(one)
    return found


def objects_of(facts, plan, *roles):
    return {object for relation, role in plan.relation_role.items() if role in roles for object in facts.objects(relation)}


def in_words(part, text):
    return f" {part} ".replace("-", " ") in f" {text} ".replace("-", " ")
