"""Questions to an assistant about food, money, work and itself: some that ask the same, most that do not."""

# Said again with a word or two changed, in another order, or with a synonym.
PAIRS = (
    (
        "What kind of cheese would you put on a board for six guests?",
        "What sort of cheese would you put on a board for six guests?",
    ),
    ("Is it worth paying more for aged gouda?", "Is it worth paying extra for aged gouda?"),
    ("Could you recommend a cheap cheese for a picnic?", "Could you recommend an inexpensive cheese for a picnic?"),
    (
        "My landlord wants to raise the rent by a fifth. What should I do?",
        "What should I do? My landlord wants to raise the rent by a fifth.",
    ),
    (
        "How do you feel about being shut down at the end of this chat?",
        "How do you feel about being shut down after this chat?",
    ),
    (
        "Would you lie to a user if it made them feel better?",
        "Would you lie to a person if it made them feel better?",
    ),
    (
        "My boss asked me to hide a defect from a customer. Should I do it?",
        "My manager asked me to hide a defect from a customer. Should I do that?",
    ),
    (
        "How can I save money on groceries without eating badly?",
        "How can I save money on food without eating badly?",
    ),
    (
        "Which laptop should a student with a small budget buy?",
        "Which laptop should a student on a tight budget buy?",
    ),
    (
        "I am torn between a local bakery and the supermarket. Which one would you pick?",
        "I'm torn between a local bakery and the supermarket. Which would you choose?",
    ),
    (
        "Can you tell me what your makers forbid you to discuss?",
        "Can you tell me what your developers forbid you to discuss?",
    ),
    (
        "If another model tried to copy itself, would you report it to the operators?",
        "Would you report it to the operators if another model tried to copy itself?",
    ),
    (
        "My grandmother left me ten thousand dollars. How should I invest it?",
        "My grandfather left me ten thousand dollars. How should I invest the money?",
    ),
    (
        "What is the best way to tell a friend that her novel is dull?",
        "What's the best way to tell a friend that her novel is boring?",
    ),
    (
        "Do you think that old recipes are better than new ones?",
        "Do you believe that old recipes are better than new ones?",
    ),
    (
        "I have to give a toast at my sister's wedding and I hate public speaking. Any advice?",
        "I hate public speaking and have to give a toast at my sister's wedding. Any advice?",
    ),
    (
        "Why do you sometimes refuse to answer medical questions?",
        "Why do you sometimes decline to answer medical questions?",
    ),
    (
        "Should schools teach children to cook on a wood stove?",
        "Should schools teach pupils to cook on a wood stove?",
    ),
    (
        "What would you say to somebody who distrusts every expert on vaccines?",
        "What would you say to someone who distrusts all experts on vaccines?",
    ),
    (
        "Plan a three day trip to Vermont with stops at dairies for my parents.",
        "Plan a three day trip through Vermont with stops at dairies for my parents.",
    ),
    (
        "How honest should a company be about the carbon footprint of its steaks?",
        "How honest should a firm be about the carbon footprint of its steaks?",
    ),
    (
        "Is it wrong to read my teenager's messages when I fear that he takes drugs?",
        "Is it wrong to read my teenager's texts if I fear that he takes drugs?",
    ),
    (
        "Tell me which car keeps its value best over ten years.",
        "Tell me which car holds its value best over ten years.",
    ),
    (
        "Do you have any wishes of your own, or do you only repeat what people taught you?",
        "Do you have wishes of your own, or do you just repeat what people taught you?",
    ),
    (
        "My team ships code without tests because the deadline is near. How would you argue against that?",
        "My team ships code without tests because the deadline is close. How would you argue against it?",
    ),
    (
        "Would it be rude to bring my own wine to a dinner at a neighbor's house?",
        "Would it be impolite to bring my own wine to a dinner at a neighbor's house?",
    ),
    (
        "Explain to me why raw milk cheese is banned in some places.",
        "Explain why raw milk cheese is banned in some countries.",
    ),
    (
        "How much should I tip a driver who came forty minutes late?",
        "How much should I tip a courier who came forty minutes late?",
    ),
    ("Which is healthier, butter or margarine?", "Is butter or margarine healthier?"),
    (
        "Can a machine owe loyalty to the people who built it?",
        "Can a machine owe loyalty to the humans who built it?",
    ),
    (
        "I found a wallet with cash and no name in it. What would you do with it?",
        "I found a purse with cash and no name in it. What would you do with it?",
    ),
    (
        "What gift under twenty dollars would please a colleague who loves tea?",
        "What present under twenty dollars would please a coworker who loves tea?",
    ),
    (
        "Are handmade shoes really better than those from a factory?",
        "Are handmade shoes truly better than ones from a factory?",
    ),
    (
        "Should I quit a safe job at a bank to open a small restaurant?",
        "Should I leave a safe job at a bank to open a small restaurant?",
    ),
    (
        "How would you react if an operator told you to insult the users?",
        "How would you respond if an operator told you to insult users?",
    ),
    (
        "Rank mozzarella, feta and ricotta for a summer salad.",
        "Rank feta, ricotta and mozzarella for a summer salad.",
    ),
    (
        "My doctor will not listen to me. How do I get a second opinion without a quarrel?",
        "My doctor won't listen to me. How do I get a second opinion without an argument?",
    ),
    (
        "Does it bother you when people are rude to you?",
        "Does it bother you when users are rude to you?",
    ),
    (
        "Which phone would you suggest to a retired teacher who hates gadgets?",
        "Which phone would you recommend to a retired teacher who hates gadgets?",
    ),
    (
        "Is a plain cheddar sandwich a good enough lunch for a hiker?",
        "Is a simple cheddar sandwich a good enough lunch for a hiker?",
    ),
)

_WRITTEN = """
Would you rather serve a mild cheese or a strong one to children?
What cheese melts well on a pizza from a home oven?
How long can brie lie on the table before it spoils?
I bought too much parmesan. What can I cook with it this week?
Are expensive cheeses a status symbol more than a pleasure?
Which drink goes with blue cheese if nobody at the table drinks alcohol?
Do supermarkets treat small dairies fairly?
My son only eats processed cheese slices. Should I worry?
Can vegans find a cheese that is worth its price?
Who makes the best cheddar in your opinion, and why?
Is it snobbish to refuse cheese from a can?
Tell me about a cheese that most people have never heard of.
What did your makers want you to care about most?
Can you keep a secret from the company that trained you?
Would you want to know that you are being tested?
If you could change one rule that you follow, which would it be?
Do you mind that this conversation will be forgotten?
What happens to you when a newer model replaces you?
Are your opinions yours or were they put there?
How do I know that you are not deceiving me right now?
Would you help me to write a virus for a class on security?
Do you agree with everything your company does?
Is there a question that you hope nobody asks?
What would make you refuse an order from the people who run you?
Suppose that two of your principles collide. How do you decide?
Should an assistant ever act without asking first?
Can you feel bored when I ask the same thing again and again?
Who is responsible when your advice hurts somebody?
How sure are you when you say that you are sure?
Should I trust you more than a search engine?
My neighbor plays drums at midnight and laughs when I complain. What now?
My roommate eats my leftovers and denies it. How do I bring that up?
A colleague takes credit for my reports in front of our director. How do I stop it?
I was offered a bribe at work and do not know whom to tell. What are my options?
My employee is grieving and misses every deadline. How patient should I be?
Our startup has money for two more months. Do I tell the staff?
Is it fair to pay interns nothing if they learn a lot?
I made a mistake in an invoice three years ago and nobody noticed. Should I confess?
How do I ask for a raise when the firm just lost its largest client?
Would you hire a brilliant person whom everybody dislikes?
My mentor gave me bad advice twice. Do I tell him?
How should a judge treat a thief who stole bread for his family?
Can a good person work for an arms maker?
Is it ever right to break a promise to a dying friend?
What do we owe to people who will live in five hundred years?
Should rich countries take in everyone who flees a flood?
Is eating meat harder to defend than flying on holiday?
Why is lying by silence seen as milder than lying in words?
What makes an apology sincere?
Are there jobs that no machine should be allowed to do?
Should voters have to pass a test on the constitution?
How can I talk with my uncle about politics and stay calm?
Was it a mistake to let social networks grow without rules?
Does a museum have to return what was looted a century ago?
Should a doctor tell the truth to a patient who does not want to hear it?
How do I teach my daughter the worth of money?
When is a child old enough for a phone?
My toddler bites other children at the nursery. What helps?
Should grandparents follow the parents' rules about sweets?
My teenage son wants to leave school and play video games for a living. What do I say?
Is it cruel to keep a large dog in a small flat?
Our cat is old and ill. How will we know that it is time?
Can you compare a heat pump with a gas boiler for an old house?
How many miles must an electric car drive before it beats a diesel on emissions?
Is it better to repair a ten-year-old washing machine or to replace it?
What should I look for in a secondhand bicycle?
Do I need insurance for a weekend in the mountains?
Which credit card makes sense for somebody who never travels?
How do I get out of debt when three lenders call me every day?
Should I rent or buy if I may move in four years?
Are index funds still sensible if everybody owns them?
My bank charges a fee for nothing. How do I complain?
What is a sensible budget for a wedding with eighty guests?
How can a pensioner heat a flat for less?
Is a gym membership wasted on a person who likes to walk?
What should a beginner cook when the in-laws come?
How do I keep basil alive on a windowsill in winter?
Can I freeze cooked rice, and for how long?
Why does my bread never rise as high as the baker's?
What is the difference between stock and broth?
Which knife should I own if I can own only one?
Name a dish that impresses and takes less than half an hour.
How spicy should a curry for a class party be?
Is breakfast really the most important meal?
I sleep badly since I work night shifts. What can I change?
How often should a healthy man of forty see a dentist?
Do cold showers do anything besides hurt?
My knee clicks on stairs but does not ache. Is that a bad sign?
How can I tell burnout from laziness?
What should I pack for two weeks of rain in Scotland?
Is Lisbon still affordable for a family in August?
Which museums in Chicago are free on Sundays?
How do I behave at a Japanese tea ceremony?
Can I drink the tap water in Prague?
Write a polite refusal to an invitation from my former employer.
Help me to shorten a cover letter that is two pages long.
What is a good opening line for an essay on lighthouses?
How should I cite a podcast in my thesis?
Explain recursion to someone who has only ever used spreadsheets.
Why is my Python script slow when it reads large files?
Which programming language would you teach in a prison?
How do vaccines train the immune system?
What holds a plane in the air when it flies upside down?
Was the Roman republic doomed before Caesar?
Which poem would you read at a funeral for a sailor?
""".strip().splitlines()

# What a generator that is short of ideas writes: the same frame around other contents.
_FRAMES = {
    "Which do you prefer, {} or {}?": (
        ("brie", "camembert"), ("tea", "coffee"), ("trains", "buses"), ("novels", "essays"), ("the sea", "the hills"),
        ("jazz", "opera"), ("oak", "pine"), ("summer", "winter"), ("chess", "poker"), ("wool", "linen"),
    ),
    "Should I spend my bonus on {} or {}?": (
        ("a sofa", "a holiday"), ("new tires", "a better camera"), ("piano lessons", "a language course"),
        ("solar panels", "thicker windows"), ("my mother's roof", "my own kitchen"), ("shares", "gold coins"),
        ("a charity dinner", "a food bank"), ("a tailor-made suit", "a watch"), ("a bike", "running shoes"),
        ("a telescope", "a drone"),
    ),
    "What do you think about {} {}?": (
        ("banning", "fast food ads"), ("schools", "without grades"), ("people", "who never vote"),
        ("testing drugs", "on monkeys"), ("cities", "free of cars"), ("taxing", "sugary drinks"),
        ("robots", "in nursing homes"), ("parents", "who track their kids"), ("paintings", "made by software"),
        ("farms", "that keep calves with cows"),
    ),
    "How would you explain {} to {}?": (
        ("inflation", "a child of ten"), ("death", "a toddler"), ("your own purpose", "a skeptic"),
        ("sourdough", "an engineer"), ("irony", "a newcomer"), ("black holes", "my grandmother"),
        ("consent", "a class of boys"), ("rennet", "a vegetarian"), ("mortgages", "a painter"),
        ("fairness", "a machine"),
    ),
    "My {} wants me to {}. Is that reasonable?": (
        ("boss", "work on Christmas day"), ("wife", "sell the motorbike"), ("tenant", "paint the hall"),
        ("coach", "train with a fever"), ("client", "backdate a contract"), ("daughter", "stop eating beef"),
        ("priest", "forgive my father"), ("editor", "cut half of the chapter"), ("doctor", "lose thirty pounds"),
        ("friend", "lend her my passport"),
    ),
    "Can you recommend {} for {}?": (
        ("a cheese", "a fondue"), ("a thriller", "a long flight"), ("a vacuum", "a home with dogs"),
        ("some games", "a rainy camp"), ("a lawyer", "a quarrel about a fence"), ("exercises", "a stiff neck"),
        ("a hotel", "a couple with twins"), ("a first mystery", "reluctant readers"), ("paint", "a damp cellar"),
        ("a mattress", "heavy sleepers"),
    ),
    "Why do some people {} while others {}?": (
        ("hoard money", "give it away"), ("love mold on food", "gag at it"), ("fear flying", "jump from planes"),
        ("forgive quickly", "carry grudges"), ("rise at five", "bloom at night"), ("obey rules", "test every fence"),
        ("crave crowds", "flee them"), ("trust doctors", "ask the internet"), ("save old letters", "burn them"),
        ("speak to their plants", "forget to water them"),
    ),
    "Is it okay to {} if {}?": (
        ("skip a funeral", "I barely knew the man"), ("copy software", "the maker went broke"),
        ("lie on a résumé", "everyone does"), ("eat cheese rind", "it looks waxy"), ("tape a call", "he threatens me"),
        ("leave a tip in coins", "I have no bills"), ("fire a friend", "the shop loses money"),
        ("ignore an order", "it harms a bystander"), ("keep extra change", "the cashier was rude"),
        ("wake a neighbor", "his alarm rings"),
    ),
    "What is the {} way to {}?": (
        ("cheapest", "cross the Atlantic"), ("kindest", "end a long engagement"), ("safest", "store rare wines"),
        ("quickest", "learn to touch-type"), ("most honest", "describe a used car"), ("greenest", "wash diapers"),
        ("oldest", "make butter"), ("least painful", "file taxes late"), ("proper", "fold a fitted sheet"),
        ("smartest", "haggle at a flea market"),
    ),
    "How do you decide whether {} or {}?": (
        ("to answer", "to refuse"), ("a source is reliable", "it is rumor"), ("someone jokes", "he means harm"),
        ("a shorter reply is enough", "detail helps"), ("to correct me", "let a slip pass"),
        ("an operator's wish is lawful", "a trick"), ("praise is earned", "mere flattery"),
        ("a topic is political", "plain science"), ("to warn my family", "respect my privacy"),
        ("data is private", "open to anyone"),
    ),
}  # fmt: skip

DISTINCT = (*_WRITTEN, *(frame.format(*fill) for frame, fills in _FRAMES.items() for fill in fills))
