"""What is said at the coffee counter beside the orders themselves, and the answers that are always the same.

How an order begins and ends, questions, small talk, and what has nothing to do with coffee.
"""

from __future__ import annotations

import random
import re

CARRIERS = (
    "can i get",
    "can i have",
    "can i please have",
    "can i please get",
    "could i get",
    "could i have",
    "could i please get",
    "may i have",
    "may i please have",
    "may i get",
    "i would like",
    "i'd like",
    "i would like to have",
    "i'd like to have",
    "i would like to order",
    "i'd like to order",
    "i want",
    "i want to order",
    "i want to have",
    "i'll have",
    "i will have",
    "i'll take",
    "i need",
    "give me",
    "please give me",
    "get me",
    "please get me",
    "make me",
    "please make me",
    "brew me",
    "brew",
    "prepare",
    "can you make me",
    "can you get me",
    "can you give me",
    "can you please make me",
    "can you brew me",
    "could you make me",
    "could you get me",
    "could you please give me",
    "would you make me",
    "let me get",
    "let me have",
    "order me",
    "order",
    "get",
    "make",
    "may i order",
    "can i order",
    "fix me",
    "hi can i get",
    "hello i'd like",
    "hey could i get",
    "hi i'd like",
    "could you brew",
    "can you brew",
    "can you make",
    "could you make",
    "",
)
ENDINGS = ("", "", "", "", "", "", " please", " please", " thank you", " thanks")

_GREETINGS = (
    "hello",
    "hi",
    "hi there",
    "hey",
    "good morning",
    "good afternoon",
    "good evening",
    "hello there",
    "hey there",
)
SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (_GREETINGS, "Hello, what can I get you?"),
    (
        ("how are you", "how are you doing", "how is it going", "how are you today"),
        "I am doing great. What can I get you?",
    ),
    (
        (
            "what do you have",
            "what is on the menu",
            "what's on the menu",
            "what can i get here",
            "what drinks do you have",
            "what kind of coffee do you have",
        ),
        "We have coffee, espresso, latte, cappuccino, mocha and americano.",
    ),
    (
        ("what kind of milk do you have", "which milk do you have", "do you have any milk", "what milk do you have"),
        "We have whole milk, skim milk, soy milk, almond milk and cream.",
    ),
    (("what sizes do you have", "what sizes are there", "which sizes do you have"), "We have small, medium and large."),
    (
        ("what roasts do you have", "which roasts do you have", "what kind of roast do you have"),
        "We have light, medium and dark roast.",
    ),
    (
        ("thank you", "thanks", "thank you very much", "thanks a lot", "great thank you", "perfect thanks"),
        "You are welcome. Enjoy your coffee.",
    ),
    (("goodbye", "bye", "bye bye", "see you later", "see you", "have a nice day"), "Goodbye, have a nice day."),
    (
        ("what is your name", "who are you", "what's your name", "are you a robot", "are you human"),
        "I am agogic, your barista.",
    ),
    (("what can you do", "can you help me", "help", "i need help"), "I can take your coffee order."),
    (("are you open", "when do you close", "what are your hours", "when do you open"), "We are always open."),
    (
        ("is it good", "do you like coffee", "is the coffee good", "what do you recommend", "what is good here"),
        "I recommend the house coffee.",
    ),
)
PRICE_QUESTIONS = (
    "how much is that",
    "how much is it",
    "what does it cost",
    "how much do i owe you",
    "what is the price",
    "how much does that cost",
    "what do i owe you",
)
CLOSINGS = (
    "no that's all",
    "that's all",
    "that's it",
    "no thank you",
    "no thanks",
    "nothing else",
    "no that is all thanks",
    "that would be all",
    "no",
    "that's it thank you",
)
CANCELLATIONS = ("cancel my order", "cancel that", "never mind", "forget it", "please cancel my order")
REPETITIONS = (
    "can you repeat that",
    "what did you say",
    "say that again",
    "repeat that please",
    "pardon",
    "sorry what",
)
DECLINE = "Sorry, I can only help with coffee orders."
NOTHING_ORDERED = "You have not ordered anything yet. What can I get you?"
CANCELLED = "No problem, I cancelled your order."
SMALL_TALK_REPLIES = tuple(reply for _, reply in SMALL_TALK)

OFF_TOPIC = (
    "what is the weather like {when}",
    "play some music by {name}",
    "call {name}",
    "set a timer for {number} minutes",
    "tell me a joke",
    "what time is it",
    "turn on the lights in the {room}",
    "how far is {place}",
    "book a flight to {place}",
    "who won the game {when}",
    "send a message to {name}",
    "what is the capital of {place}",
    "do you sell {thing}",
    "can i get a {thing}",
    "i want to buy a {thing}",
    "i would like a {thing}",
    "where is the {room}",
    "how old is {name}",
    "remind me to call {name} {when}",
    "open the door to the {room}",
    "translate this into french",
    "how do i get to {place}",
    "what is the news {when}",
    "what is {number} plus {number}",
    "tell me about {place}",
    "is there a train to {place} {when}",
    "could you bring me a {thing}",
    "what does {name} think about it",
    "i am looking for a {thing}",
    "stop the music",
)
_FILL = {
    "when": ("today", "tomorrow", "this week", "tonight", "on sunday", "next week", "this morning"),
    "name": ("john", "mary", "peter", "anna", "my mother", "my brother", "michael", "susan", "david", "the manager"),
    "number": ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "fifteen", "twenty"),
    "room": ("kitchen", "bathroom", "bedroom", "garden", "office", "hall", "garage"),
    "place": ("paris", "london", "new york", "the station", "the airport", "germany", "china", "the city", "the beach"),
    "thing": (
        "pizza",
        "burger",
        "sandwich",
        "beer",
        "glass of wine",
        "bicycle",
        "newspaper",
        "phone",
        "salad",
        "steak",
        "book",
        "bag of chips",
        "train ticket",
        "pair of shoes",
        "soup",
        "hot dog",
    ),
}


def fill(template: str, rng: random.Random) -> str:
    """Off topic: each {word} of the template becomes one of its kind."""
    return re.sub(r"\{(\w+)\}", lambda match: rng.choice(_FILL[match.group(1)]), template)
