"""Words to be spoken and heard again: no numbers, no names, nothing with two spellings. Written for these tests."""

from __future__ import annotations

SENTENCES = (
    "The old ferry crosses the river twice before breakfast.",
    "Please leave the wet umbrella beside the kitchen door.",
    "A warm wind carried the smell of bread across the square.",
    "The children painted a yellow boat on the garden wall.",
    "She folded the letter and put it back in the drawer.",
    "Fresh snow covered the path that leads to the lake.",
    "The baker opens the shop long before the sun comes up.",
    "He tied the rope to the tree and pulled with all his strength.",
    "Bright lamps hung over the long wooden table.",
    "The train was late, so we waited in the small station.",
    "Your order has shipped and should arrive by Thursday afternoon.",
    "I have moved the meeting to next Monday morning.",
    "Would you like me to read the message again?",
    "The weather tomorrow will be cloudy with a little rain in the evening.",
    "Turn left at the next corner and keep walking until you see the bridge.",
    "I could not find that song, but here is something similar.",
    "The front door is locked, and all the lights are off.",
    "Your battery is almost empty, please plug in the charger.",
    "Thank you for calling, how can I help you today?",
    "The library closes early on Friday, so bring the books back soon.",
)

# Seventy-four words.
PARAGRAPH = (
    "The station at the end of the line was built for a town that never came. One train a day still comes, in the "
    "evening, and a guard in a blue coat steps down to look along the empty platform. Nobody gets on. Once, in the "
    "middle of winter, he found a basket of apples under the bench, with a note that thanked him for waiting, and he "
    "carried it home through the snow."
)
