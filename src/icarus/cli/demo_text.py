"""The conversation that the demo plays: invented, and ours."""

CONVERSATION = """\
Customer: Good morning. Since Tuesday the greenhouse controller at our north site opens the roof vents at night, and \
the basil took frost damage. It is the model with the two relay boards. Can somebody look into it?
Agent: Good morning, and sorry about the basil. I can see the controller. Firmware 4.2 went on it on Monday evening. \
May I read its event log and its schedule?
Customer: Please do. The schedule has not been touched since spring, I checked it myself.
Agent: Thank you. The log has eleven entries "vent A open, source: humidity" between two and five in the morning. \
Before Monday there were none at night. The humidity limit is 85 percent, the sensor reported 97 each time.
Customer: It may well be humid at night, but the vents must stay shut below four degrees. That was the whole point.
Agent: Right. There is a frost lock in the settings: minimum outside temperature 4.0, enabled. Yet the outside \
thermometer reads 21.5 at three in the morning. I doubt that it was that warm.
Customer: Certainly not, there was ice on the water butt. Is the thermometer broken then?
Agent: It agrees with the inside one to the last digit, in every reading since the update. I think that the update \
swapped the two inputs: both now read the inside probe. I am opening a ticket with the firmware team, and I can pin \
the old firmware on your controller today, if you agree.
Customer: Agreed, but not before six, the shading runs until then. And I need a note for the insurance.
Agent: Noted: roll back after six in the evening, tonight with the vents locked by hand. I will write the note with \
the log attached, and a summary for your colleague who takes over on Friday.
"""
