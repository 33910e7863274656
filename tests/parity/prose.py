"""Texts to compare models on, written for these tests: plain English, and a mixture of languages, code and digits."""

ENGLISH = """\
Once upon a time, in a small village at the foot of a mountain, there lived a young girl named Anna. Every morning she
walked through the forest to the school on the other side of the hill. One day, on her way home, she heard a strange
sound behind the trees. She stopped and listened. It was the sound of someone crying. Anna followed the sound until
she came to a clearing, where she saw a small fox with its leg caught between two stones. "Do not be afraid," she said
softly. "I will help you." She knelt down and carefully moved the stones apart, and the fox pulled its leg free. It
looked at her for a moment, as if it wanted to thank her, and then it disappeared into the forest. The next winter was
very cold, and there was little food in the village. One evening, when the snow was falling heavily, Anna lost her way
in the forest. She called for help, but nobody answered. Just as she was about to give up, she saw two bright eyes in
the dark. It was the fox. It walked a few steps, turned around and waited for her. Anna followed it through the snow,
step by step, until she saw the lights of the village. Her mother was waiting at the door, and when she saw Anna she
ran to her and held her in her arms. Anna turned around to thank the fox, but it was already gone.

Water is a chemical compound made of two hydrogen atoms and one oxygen atom. It is one of the most important
substances on Earth, because all known living things depend on it. Water can exist in three states: solid, liquid and
gas. When it is cooled below zero degrees Celsius, it freezes and becomes ice. When it is heated to one hundred
degrees Celsius at sea level, it boils and turns into steam.

The water cycle describes how water moves through the environment. First, the sun heats the surface of the oceans,
lakes and rivers, and some of the water evaporates into the air. As the warm air rises, it cools, and the water vapor
condenses into tiny droplets that form clouds. When the droplets become heavy enough, they fall back to the ground as
rain or snow. Some of this water flows into streams and rivers, and some of it soaks into the soil, where it is stored
as groundwater.

Plants play an important role in the water cycle. They take up water through their roots and release it through their
leaves in a process called transpiration. Forests can therefore influence the amount of rainfall in a region. When
large areas of forest are cut down, the local climate may become drier, and the soil may be washed away by heavy rain.

People use water for many purposes, such as drinking, cooking, cleaning, farming and producing energy. In many parts
of the world, clean water is scarce, and millions of people do not have access to safe drinking water. For this
reason, it is important to protect rivers and lakes from pollution and to use water carefully.
"""

MIXED = """\
The harbour was quiet when the ferry came in. Two men in yellow coats waited on the quay with a rope between them, and
neither said a word until the gangway was down. The captain had promised to be back before noon, but the fog had held
him at the mouth of the river for three hours. "You are late," said the older man, and then he laughed, because nobody
on that coast had ever been on time.

A good measurement begins with a question. If we want to know how warm the water is, we must first decide where, when
and how deep; otherwise the thermometer answers something else. In 1987 the station recorded 14.2 degrees in June and
17.9 degrees in August, an increase of 3.7 degrees. By 2021 the same months gave 15.6 and 19.3.

def mean(values: list[float]) -> float:
    \"\"\"The arithmetic mean; refuses an empty list.\"\"\"
    if not values:
        raise ValueError("mean of nothing")
    return sum(values) / len(values)

for month, value in {"June": 15.6, "July": 17.0, "August": 19.3}.items():
    print(f"{month:>8}: {value:5.1f}")

Der Zug hatte zwanzig Minuten Verspätung, also tranken wir am Bahnhof noch einen Kaffee und sprachen über das Wetter.
La bibliothèque ferme à dix-huit heures, mais le gardien nous a laissés finir la page que nous étions en train de lire.
Mañana por la mañana saldremos temprano, porque el camino es largo y las montañas no esperan a nadie.
Утром шёл снег, а к вечеру на улице стало тихо и светло. 今日はとても静かな一日でした。

| item   | count | price |
|--------|-------|-------|
| apples |    12 |  3.40 |
| pears  |     7 |  2.85 |

The question that remains is a simple one: who will keep the light when the keeper is gone? The town has four hundred
people and one lamp. It has burned every night since 1874, and nobody living has seen the bay without it.
"""
