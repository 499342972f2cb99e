"""The conversation that the demo plays: invented, and ours."""

from dataclasses import dataclass

Message = dict[str, str]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


@dataclass(frozen=True)
class Ask:
    """One specialist's turn: what the customer says, and what the specialist is to do with it."""

    specialist: str
    text: str
    instruction: str

    @property
    def messages(self) -> tuple[Message, ...]:
        """What is particular to the specialist comes last, so that all before it is shared."""
        return _message("user", self.text), _message("user", self.instruction)


CREW = (
    Ask(
        "banking",
        "Good. Another matter, since I have you: I paid your invoice for the spring service by card on Monday, and "
        "the payment is still pending in my account.",
        "Name the banking intent.",
    ),
    Ask(
        "diagnose",
        "Thank you for looking. And do you believe by now that it is the thermometer's input, or could the relay "
        "board be at fault as well?",
        "Say what the fault is.",
    ),
    Ask(
        "tools",
        "My colleague who comes on Friday will be hungry. Book a table for two people at an Italian restaurant in "
        "Boston for Friday evening.",
        'Write the tool call as JSON: "Book a table for two people at an Italian restaurant in Boston for Friday '
        'evening."',
    ),
    Ask(
        "plan",
        "Right. Before he comes I want to know in which order you will do things tonight, and what I have to do "
        "at the vents myself.",
        "List the next steps.",
    ),
    Ask(
        "intents",
        "I will forget it otherwise: set a reminder to lock the vents by hand at six o'clock this evening.",
        "Name the intent, or say out of scope.",
    ),
    Ask(
        "check",
        "I have done that. Please go through what you promised me so far, and tell me whether anything of it is "
        "still open on your side.",
        "Check the promises.",
    ),
    Ask(
        "maths",
        "For the insurance: we lost 14 trays of basil with 12 plants in each tray, and a plant costs 3 dollars. "
        "How many dollars did we lose?",
        "Solve it step by step.",
    ),
    Ask(
        "write",
        "That is more than I thought. Then write the note for the insurance with that sum in it, and mention the "
        "update of Monday evening.",
        "Write the note.",
    ),
)
"""A support crew. Four of them are trained (`examples/specialists`); the others' weights are random."""

_USER, _AGENT = "user", "assistant"
CONTEXT = tuple(
    _message(role, text)
    for role, text in (
        (
            _USER,
            "Good morning. Since Tuesday the greenhouse controller at our north site opens the roof vents at night, "
            "and the basil took frost damage. It is the model with the two relay boards. Can somebody look into it?",
        ),
        (
            _AGENT,
            "Good morning, and sorry about the basil. I can see the controller. Firmware 4.2 went on it on Monday "
            "evening. May I read its event log and its schedule?",
        ),
        (_USER, "Please do. The schedule has not been touched since spring, I checked it myself."),
        (
            _AGENT,
            'Thank you. The log has eleven entries "vent A open, source: humidity" between two and five in the '
            "morning. Before Monday there were none at night. The humidity limit is 85 percent, the sensor reported "
            "97 each time.",
        ),
        (
            _USER,
            "It may well be humid at night, but the vents must stay shut below four degrees. That was the whole point.",
        ),
        (
            _AGENT,
            "Right. There is a frost lock in the settings: minimum outside temperature 4.0, enabled. Yet the outside "
            "thermometer reads 21.5 at three in the morning. I doubt that it was that warm.",
        ),
        (_USER, "Certainly not, there was ice on the water butt. Is the thermometer broken then?"),
        (
            _AGENT,
            "It agrees with the inside one to the last digit, in every reading since the update. I think that the "
            "update swapped the two inputs: both now read the inside probe. I am opening a ticket with the firmware "
            "team, and I can pin the old firmware on your controller today, if you agree.",
        ),
        (_USER, "Agreed, but not before six, the shading runs until then. And I need a note for the insurance."),
        (
            _AGENT,
            "Noted: roll back after six in the evening, tonight with the vents locked by hand. I will write the note "
            "with the log attached, and a summary for your colleague who takes over on Friday.",
        ),
        (
            _USER,
            "What about the south site? It has the same controller, and we have two thousand young tomato plants "
            "there. Nobody has told me of open vents, but then nobody sleeps in the greenhouse.",
        ),
        (
            _AGENT,
            "I looked. The south site still runs firmware 4.1, and its two thermometers disagree as they should: 3.2 "
            "outside and 17.8 inside at three this morning. The update to 4.2 was planned for tonight. I have taken "
            "it out of the plan until the firmware team has an answer.",
        ),
        (
            _USER,
            "Good. Then leave it there. Can you also see whether the heating ran at the north site? The bill for last "
            "week is a third above the one before, and I wondered why.",
        ),
        (
            _AGENT,
            "It did. The boiler started at ten past two each night and ran until the vents closed, about three hours. "
            "So it heated with the roof open. In the week before it ran for forty minutes a night. I will put both "
            "figures into the note, since the insurance may ask for the cost of the gas as well.",
        ),
        (
            _USER,
            "That explains it. My father used to say that one heats the greenhouse and not the village. Who is going "
            "to pay for that gas, if it was your update?",
        ),
        (
            _AGENT,
            "I cannot decide that, but I have passed it on to the service manager with the readings, and she will "
            "call you tomorrow before noon. Is the number that ends with 418 still right?",
        ),
        (
            _USER,
            "It is, but I am out with the van until eleven, so better after that. And tell her that the sensor at the "
            "east door has shown a low battery since March. Each time somebody comes, he has the wrong size with him.",
        ),
        (
            _AGENT,
            "After eleven then. The sensor at the east door takes a CR123A, not the AA that is on the work order; I "
            "have corrected the order and added two spare ones. Whoever comes on Friday will have them in the box.",
        ),
        (_USER, "Wonderful. That is the first time that anybody has looked it up instead of guessing."),
        (
            _AGENT,
            "Glad to hear it. Two things that I saw on the way: the shading at the north site still closes at noon in "
            "the summer's way, and the log says that its door stood open for two hours on Sunday. Neither has to do "
            "with the vents, but both cost you warmth. I can move the shading to the winter's hours if you want. "
            "To sum up: tonight after six the north site goes back to 4.1, the south site stays as "
            "it is, the firmware team has the ticket, the manager calls after eleven, and the note is on its way.",
        ),
    )
)
"""About a thousand tokens in which nobody of the crew has spoken yet."""

WARM_UP = tuple({**message, "content": " ".join(reversed(message["content"].split()))} for message in CONTEXT[:8])
"""Long enough for a prefill worker, and one block in common: the first of the template's default system turn."""
